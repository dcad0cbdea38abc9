"""The small agent does what tests rely on."""
from __future__ import annotations

import hmac
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import unittest
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

HERE = Path(__file__).parent
LOGIN = {"claudeAiOauth": {"accessToken": "canary-access", "refreshToken": "canary-refresh", "expiresAt": 1_790_000_000_000}}


def proof(name: str, secret: bytes) -> str:
    return f"proof {name} {hmac.new(b'proof', secret, 'sha256').hexdigest()}"


class Run:
    """One run of the agent in a directory of its own."""

    def __init__(self, root: Path, **environment: str) -> None:
        self.log: list[str] = []
        self.process = subprocess.Popen([sys.executable, root / "agent.py"], stdout=subprocess.PIPE, text=True, cwd=root, env={
            "PATH": os.environ["PATH"], "HOST": "127.0.0.1", "PORT": "0", **environment})

    def read_until(self, pattern: str) -> re.Match[str]:
        """Reads the log up to a line; fails at its end."""
        for line in self.process.stdout:
            self.log.append(line.rstrip("\n"))
            if found := re.fullmatch(pattern, self.log[-1]):
                return found
        raise AssertionError(f"no {pattern} in {self.log}")

    def url(self) -> str:
        return f"http://127.0.0.1:{self.read_until('listens on ([0-9]+)')[1]}"

    def end(self) -> int:
        self.log += self.process.stdout.read().splitlines()
        self.process.stdout.close()
        return self.process.wait(10)


def ask(url: str, method: str = "GET") -> dict[str, object]:
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as answer:
        return json.load(answer)


class SmallAgent(unittest.TestCase):
    def setUp(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.root)
        for name in ("agent.py", "install.sh", "VERSION"):
            shutil.copy(HERE / name, self.root)
        self.credentials = self.root / "credentials.json"
        self.credentials.write_text(json.dumps(LOGIN))

    def start(self, **environment: str) -> Run:
        run = Run(self.root, **environment)
        self.addCleanup(run.process.stdout.close)
        self.addCleanup(run.process.wait)
        self.addCleanup(run.process.kill)
        return run

    def test_it_serves_its_version_and_a_counter_that_survives_a_restart(self) -> None:
        for number in (1, 2):
            run = self.start()
            url = run.url()
            self.assertEqual(ask(url + "/health"), {"version": "v1"})
            self.assertEqual(ask(url + "/counter"), {"counter": number})
            run.process.terminate()
            self.assertEqual(run.end(), 0)

    def test_it_proves_its_secrets_and_says_none(self) -> None:
        token = "canary 'token'\n"
        run = self.start(SECRETS="TOKEN", TOKEN=token, CREDENTIALS=str(self.credentials))
        run.url()
        run.process.terminate()
        run.end()
        self.assertIn(proof("TOKEN", token.encode()), run.log)
        self.assertIn(proof("credentials", self.credentials.read_bytes()), run.log)
        self.assertNotIn("canary", "\n".join(run.log))

    def test_it_does_not_start_without_a_secret(self) -> None:
        run = self.start(SECRETS="TOKEN")
        self.assertNotEqual(run.end(), 0)

    def test_it_refreshes_its_login_when_it_is_asked_or_gets_a_signal(self) -> None:
        run = self.start(CREDENTIALS=str(self.credentials))
        url = run.url()
        seen = {"canary-access"}
        for refresh in (lambda: ask(url + "/refresh", "POST"), lambda: run.process.send_signal(signal.SIGUSR1)):
            refresh()
            run.read_until("refreshed")
            login = json.loads(self.credentials.read_text())["claudeAiOauth"]
            self.assertNotIn(login["accessToken"], seen)
            seen.add(login["accessToken"])
            self.assertEqual(login["refreshToken"], "canary-refresh")
            self.assertEqual(stat.S_IMODE(self.credentials.stat().st_mode), 0o600)
        self.assertGreater(login["expiresAt"], LOGIN["claudeAiOauth"]["expiresAt"])

    def test_it_claims_a_token_with_each_beat_also_when_that_is_refused(self) -> None:
        names: list[str] = []

        class Service(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                names.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self.send_error(409)

            def log_message(self, *_: object) -> None:
                """Requests are no news."""

        with HTTPServer(("127.0.0.1", 0), Service) as service:
            run = self.start(CLAIM=f"http://127.0.0.1:{service.server_port}/claim")
            for _ in range(3):
                service.handle_request()
            run.process.terminate()
        self.assertEqual(names, [socket.gethostname()] * 3)

    def test_it_exits_as_it_is_told(self) -> None:
        run = self.start()
        ask(run.url() + "/exit/7", "POST")
        self.assertEqual(run.end(), 7)

    def test_the_broken_version_dies_at_its_start(self) -> None:
        (self.root / "VERSION").write_text("broken\n")
        run = self.start()
        self.assertEqual(run.end(), 1)
        self.assertEqual(run.log[-1], "this version dies at its start")

    def test_its_install_command_notes_the_version(self) -> None:
        for _ in range(2):
            subprocess.run([self.root / "install.sh"], check=True)
        self.assertEqual((self.root / "installed.log").read_text(), "v1\nv1\n")
