"""A scratch machine for the guest's tests: a root directory, a stand-in System, and requests that fit."""
from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
import unittest
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "hetzner-sim"))
import machine_host  # noqa: E402

PROGRAM = (ROOT / "src" / "guest" / "program.py").read_bytes()
BOOT = machine_host.boot_part(PROGRAM)
guest = machine_host.load_guest(PROGRAM, "program.py")
boot_guest = machine_host.load_guest(BOOT, "boot.py")

BOOT_KEY, RESUME_KEY = "aa" * 32, "bb" * 32
HOST_KEY = b"\0\0\0\x0bssh-ed25519\0\0\0 " + bytes(range(32))
SECRET, TOKEN = "/home/agent/.env", "/home/agent/.claude/credentials.json"


def tag(content: bytes) -> str:
    return hashlib.sha256(b"tag key" + content).hexdigest()


def description(**changes: Any) -> dict[str, Any]:
    return {
        "instance": "uid-1", "incarnation": 1, "user": "agent", "packages": ["git"], "source": None,
        "install": [], "update": [], "environment": {"LEVEL": "info"}, "secretPaths": [SECRET],
        "files": [{"path": "/etc/agent.conf", "mode": "0644", "owner": "agent", "content": "old"}],
        "unit": {"name": "agent.service", "text": "[Service]\nExecStart=/bin/agent\n"},
        "configRevision": "rev-1"} | changes


def plain(path: str, content: str = "", **changes: Any) -> dict[str, Any]:
    return {"path": path, "mode": "0644", "owner": "agent", "content": content} | changes


def archive(request: Any, members: dict[str, bytes]) -> bytes:
    """The tar that the operator sends."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in {"request.json": json.dumps(request).encode(), **members}.items():
            item = tarfile.TarInfo(name)
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content))
    return data.getvalue()


class Machine:
    """One server: its root, and the verbs as the operator would call them."""

    def __init__(self, server: str = "server-1") -> None:
        self.root = Path(tempfile.mkdtemp(prefix="guest-"))
        self.faults: dict[str, bool] = {}
        self.put("/etc/agentfleet/identity.json", json.dumps(
            {"fleet": "fleet-1", "server": server, "bootProofKey": BOOT_KEY}))
        self.put("/etc/ssh/ssh_host_ed25519_key.pub",
                 "ssh-ed25519 " + base64.b64encode(HOST_KEY).decode() + " root@server\n")
        self.describe()

    def describe(self, **changes: Any) -> None:
        self.put("/etc/agentfleet/agent.json", json.dumps(description(**changes)))

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def put(self, path: str, content: str) -> None:
        self.path(path).parent.mkdir(parents=True, exist_ok=True)
        self.path(path).write_text(content)

    def text(self, path: str) -> str:
        return self.path(path).read_text()

    def exists(self, path: str) -> bool:
        return os.path.lexists(self.path(path))

    def state(self) -> dict[str, Any]:
        return json.loads(self.text("/var/lib/agentfleet/state.json"))

    def voice(self) -> list[str]:
        path = self.path(".machine/voice.log")
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []

    def system(self, program: Any = guest) -> Any:
        return machine_host.fake_system(program, str(self.root), self.faults)

    def raw(self, command: str, data: bytes, program: Any = guest, system: Any = None) -> tuple[int, dict[str, Any]]:
        output = io.BytesIO()
        code = program.main(["ssh", command], io.BytesIO(data), output, system or self.system(program))
        return code, json.loads(output.getvalue())

    def call(self, verb: str, request: Any, program: Any = guest, system: Any = None) -> dict[str, Any]:
        return self.raw(verb, json.dumps(request).encode(), program, system)[1]

    def install(self, program: Any = guest) -> int:
        return program.main(["install"], io.BytesIO(), io.BytesIO(), self.system(program))

    def armed(self) -> bool:
        return guest.Guest(self.system()).is_armed()

    def hello(self, program: Any = guest, **more: Any) -> dict[str, Any]:
        return self.call("hello", {"nonce": "ab" * 32, **more}, program)

    def configure(self, epoch: int = 1, secrets: dict[str, bytes] | None = None, system: Any = None,
                  may_change: bool = True, kept: list[Any] | None = None, **changes: Any) -> dict[str, Any]:
        request, members = configuration(epoch, secrets, may_change, **changes)
        if kept is not None:
            request["kept"] = kept
        return self.raw("configure", archive(request, members), system=system)[1]

    def release(self, epoch: int) -> dict[str, Any]:
        return self.call("release", {"epoch": epoch})

    def upgrade(self, program: bytes, epoch: int = 1, on: Any = guest, sha256: str = "") -> dict[str, Any]:
        request = {"epoch": epoch, "sha256": sha256 or hashlib.sha256(program).hexdigest()}
        return self.raw("upgrade", archive(request, {"program": program}), on)[1]


def configuration(epoch: int = 1, secrets: dict[str, bytes] | None = None, may_change: bool = True,
                  **changes: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Request and members of a configure."""
    secrets = {SECRET: b"KEY=one"} if secrets is None else secrets
    new = description(**changes)
    files = [{"path": path, "mode": "0600", "owner": "agent", "member": f"files/{index}", "tag": tag(content),
              "agentMayChange": may_change} for index, (path, content) in enumerate(secrets.items())]
    request = {"epoch": epoch, "instance": new["instance"], "incarnation": new["incarnation"],
               "resumeKey": RESUME_KEY, "description": new, "secretsTag": "tag-1", "secretFiles": files}
    return request, {f"files/{index}": content for index, content in enumerate(secrets.values())}


class GuestTest(unittest.TestCase):
    """A test with one installed machine."""

    def setUp(self) -> None:
        self.machine = self.new_machine()
        self.assertEqual(self.machine.install(), 0)

    def new_machine(self, server: str = "server-1") -> Machine:
        machine = Machine(server)
        self.addCleanup(shutil.rmtree, machine.root)
        return machine

    def assert_refused(self, answer: dict[str, Any], code: str) -> dict[str, Any]:
        self.assertEqual((answer["ok"], answer.get("error", {}).get("code")), (False, code), answer)
        return answer["error"]

    def assert_done(self, answer: dict[str, Any]) -> dict[str, Any]:
        self.assertTrue(answer["ok"], answer)
        return answer
