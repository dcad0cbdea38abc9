#!/bin/sh
# What the class of this agent runs after a clone and after a new ref: notes which version was installed.
set -eu
cd "$(dirname "$0")"
python3 -m py_compile agent.py
cat VERSION >>"${INSTALLED:-installed.log}"
