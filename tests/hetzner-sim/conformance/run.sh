#!/bin/sh
# Runs the conformance tests with a Python that has hcloud, jsonschema and pytest:
#     run.sh PYTHON [SIMULATOR]
# The simulator is built unless it is given.
set -eu
python=${1:?usage: run.sh PYTHON [SIMULATOR]}
here=$(cd "$(dirname "$0")" && pwd)
if [ -z "${2:-}" ]; then
    cargo build --quiet --package hetzner-sim --bin hetzner-sim --manifest-path "$here/../../../Cargo.toml"
fi
simulator=${2:-${CARGO_TARGET_DIR:-$here/../../../target}/debug/hetzner-sim}
exec "$python" -m pytest --quiet -p no:cacheprovider --simulator "$simulator" "$here"
