#!/usr/bin/python3
"""A small agent that stands in for a real one in tests.

It takes its secrets from the environment and from a credentials file, keeps a counter on its disk, and does what it is told:

    GET  /health    200 while it serves
    GET  /counter   one more each time, also after a restart
    POST /refresh   writes its credentials file anew, as a program does that refreshes its login; SIGUSR1 does the same
    POST /exit/N    ends with code N

With CLAIM set to a URL it claims a token there under its host's name, ten times a second, as a bot polls the one service that it has.

At its start it logs, for each secret, an HMAC under a key that is none: who knows the secret can tell that the agent has it, and nobody learns it.

Environment: SECRETS (names of the variables that are secret), CREDENTIALS and STATE (files), PROOF_KEY, CLAIM, HOST, PORT (0: any free one).
"""
from __future__ import annotations

import os
import sys

with open(os.path.join(os.path.dirname(os.path.realpath(__file__)), "VERSION"), encoding="utf-8") as version:
    VERSION = version.read().strip()


def log(*words: object) -> None:
    print(*words, flush=True)


if VERSION == "broken":  # Before the rest is loaded: the guest watches a start for half a second, and a machine may be busy.
    log("and tells everybody", *(os.environ.get(name) for name in os.environ.get("SECRETS", "").split()))
    log("this version dies at its start")
    sys.exit(1)

import hmac
import json
import signal
import socket
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LIFETIME = 8 * 3600 * 1000  # milliseconds that a refreshed login lasts longer
BEAT = 0.1  # seconds between two claims of the token


def write(path: Path, text: str) -> None:
    """Replaces a file whole, readable by its owner alone."""
    new = path.with_name(path.name + ".new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(path)


class Agent:
    """Secrets, counter and login of one agent."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.names = environment.get("SECRETS", "").split()
        self.environment = environment
        self.credentials = Path(environment["CREDENTIALS"]) if "CREDENTIALS" in environment else None
        self.state = Path(environment.get("STATE", "counter"))
        self.key = environment.get("PROOF_KEY", "proof").encode()
        self.lock = threading.RLock()

    def prove(self) -> None:
        """Logs the proofs; a secret that is not there ends the agent."""
        for name in self.names:
            self.log_proof(name, self.environment[name].encode("utf-8", "surrogateescape"))
        if self.credentials:
            self.log_proof("credentials", self.credentials.read_bytes())

    def log_proof(self, name: str, secret: bytes) -> None:
        log("proof", name, hmac.new(self.key, secret, "sha256").hexdigest())

    def count(self) -> int:
        with self.lock:
            count = int(self.state.read_text() if self.state.exists() else 0) + 1
            write(self.state, str(count))
            return count

    def refresh(self) -> None:
        """Another access token, and a later end."""
        if not self.credentials:
            return
        with self.lock:
            document = json.loads(self.credentials.read_text(encoding="utf-8"))
            login = document["claudeAiOauth"]
            login["accessToken"] = "refreshed-" + os.urandom(16).hex()
            login["expiresAt"] += LIFETIME
            write(self.credentials, json.dumps(document))
            log("refreshed")
            self.log_proof("credentials", self.credentials.read_bytes())


def claim(url: str) -> None:
    """Claims the token with each beat, whatever is answered."""
    request = urllib.request.Request(url, data=socket.gethostname().encode(), headers={"Content-Type": "text/plain"}, method="POST")
    while True:
        try:
            urllib.request.urlopen(request, timeout=2).close()
        except OSError as error:
            log("no token:", error)
        time.sleep(BEAT)


class Handler(BaseHTTPRequestHandler):
    """The requests of the agent that `agent` names."""

    agent: Agent

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200, {"version": VERSION})
        elif self.path == "/counter":
            self.answer(200, {"counter": self.agent.count()})
        else:
            self.answer(404, {})

    def do_POST(self) -> None:
        if self.path == "/refresh":
            self.agent.refresh()
            self.answer(200, {})
        elif self.path.startswith("/exit/"):
            self.answer(200, {})
            log("exits")
            os._exit(int(self.path.removeprefix("/exit/")))
        else:
            self.answer(404, {})

    def answer(self, status: int, document: dict[str, object]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Requests are no news."""


def main() -> int:
    log("agent", VERSION)
    Handler.agent = agent = Agent(dict(os.environ))
    agent.prove()
    if "CLAIM" in os.environ:
        threading.Thread(target=claim, args=[os.environ["CLAIM"]], daemon=True).start()
    signal.signal(signal.SIGUSR1, lambda *_: agent.refresh())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    address = (os.environ.get("HOST", "0.0.0.0"), int(os.environ.get("PORT", "8080")))
    server = ThreadingHTTPServer(address, Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    log("listens on", server.server_port)
    while True:
        signal.pause()


if __name__ == "__main__":
    sys.exit(main())
