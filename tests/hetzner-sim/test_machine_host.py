"""The host of fake machines, end to end over its socket."""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import unittest
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "guest")]
import machine_host  # noqa: E402
from machine import (BOOT, PROGRAM, SECRET, Machine, archive, configuration)  # noqa: E402

LIVE = "/usr/local/lib/agentfleet/guest"


class HostTest(unittest.TestCase):
    def setUp(self) -> None:
        self.machine = self.new_machine()
        self.socket = str(self.machine.root) + ".socket"
        self.host = subprocess.Popen(
            [sys.executable, str(HERE / "machine_host.py"), "--socket", self.socket,
             "--guest", str(HERE.parents[1] / "src" / "guest" / "program.py")], stdin=subprocess.PIPE)
        self.addCleanup(self.end)
        self.until(lambda: os.path.exists(self.socket))

    def end(self) -> None:
        self.host.stdin.close()
        self.host.wait(10)
        os.unlink(self.socket)

    def new_machine(self) -> Machine:
        machine = Machine()
        self.addCleanup(shutil.rmtree, machine.root)
        return machine

    def until(self, condition: Any) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            self.assertLess(time.monotonic(), deadline, "deadline passed")
            time.sleep(0.01)

    def connect(self, argv: list[str], stdin: bytes = b"", machine: Machine | None = None, **faults: bool) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(60)
        connection.connect(self.socket)
        header = {"root": str((machine or self.machine).root), "argv": argv, "faults": faults}
        connection.sendall(json.dumps(header).encode() + b"\n" + stdin)
        connection.shutdown(socket.SHUT_WR)
        return connection

    def answer(self, connection: socket.socket) -> tuple[int | None, bytes]:
        with connection, connection.makefile("rb") as stream:
            header = stream.readline()
            if not header:
                return None, b""
            told = json.loads(header)
            output = stream.read()
            self.assertEqual(len(output), told["length"])
            return told["exit"], output

    def call(self, verb: str, request: Any, members: dict[str, bytes] | None = None, **more: Any) -> dict[str, Any]:
        stdin = json.dumps(request).encode() if members is None else archive(request, members)
        return json.loads(self.answer(self.connect(["ssh", verb], stdin, **more))[1])

    def hello(self, **more: Any) -> dict[str, Any]:
        return self.call("hello", {"nonce": "ab" * 32, **more})

    def forks(self) -> int:
        return json.loads(self.answer(self.connect(["@stats"]))[1])["forks"]

    def ready(self, **faults: bool) -> dict[str, Any]:
        self.assertEqual(self.answer(self.connect(["install"]))[0], 0)
        return self.call("configure", *configuration(), **faults)


class Life(HostTest):
    def test_a_life_from_boot_to_release(self) -> None:
        self.assertEqual(self.hello()["phase"], "Pending")
        self.assertTrue(self.ready()["armed"])
        self.assertEqual(self.machine.text(SECRET), "KEY=one")
        self.assertEqual(self.call("status", {"epoch": 1})["unit"]["active"], "active")
        self.assertTrue(self.call("release", {"epoch": 2})["released"])
        self.assertEqual(self.machine.voice(), ["start", "stop"])
        self.assertIsNone(self.hello()["armed"])

    def test_the_boot_part_on_a_machine_must_be_upgraded_before_it_configures(self) -> None:
        self.machine.put(LIVE, BOOT.decode())
        self.assertEqual(self.ready()["error"]["code"], "BadCommand")
        sha = hashlib.sha256(PROGRAM).hexdigest()
        self.assertTrue(self.call("upgrade", {"epoch": 1, "sha256": sha}, {"program": PROGRAM})["upgraded"])
        self.assertTrue(self.call("configure", *configuration())["armed"])

    def test_a_configure_cut_in_its_transfer_changes_nothing(self) -> None:
        self.ready()
        whole = archive(*configuration(2, {SECRET: b"two" * 1000}))
        for part in (0, 100, 600, len(whole) // 3):
            answer = json.loads(self.answer(self.connect(["ssh", "configure"], whole[:part]))[1])
            self.assertEqual(answer["error"]["code"], "BadRequest")
        self.assertEqual((self.machine.text(SECRET), self.hello()["epoch"]), ("KEY=one", 1))

    def test_faults_are_answered_as_a_real_machine_would(self) -> None:
        self.assertEqual(self.ready(unitFails=True)["error"]["code"], "UnitFailed")
        for fault, code in (("unitCrashes", "UnitFailed"), ("diskFull", "DiskFull"), ("userMissing", "UserMissing")):
            request, members = configuration(2, {SECRET: fault.encode()})
            self.assertEqual(self.call("configure", request, members, **{fault: True})["error"]["code"], code)

    def test_the_plug_ends_what_runs_and_power_on_starts_only_an_armed_agent(self) -> None:
        self.ready()
        for state in ("off", "on"):
            self.assertEqual(self.answer(self.connect(["@power", state]))[0], 0)
        self.assertEqual(self.machine.voice(), ["start", "stop", "start"])
        self.call("release", {"epoch": 2})
        for state in ("off", "on"):
            self.answer(self.connect(["@power", state]))
        self.assertEqual(self.machine.voice(), ["start", "stop", "start", "stop"])

    def test_pulling_the_plug_cuts_an_install_which_goes_on_after_boot(self) -> None:
        self.machine.describe(install=["echo $$ >> runs; test -e go || sleep 20"])
        install = self.connect(["install"])
        self.until(lambda: self.machine.exists("/home/agent/runs"))
        self.answer(self.connect(["@power", "off"]))
        self.assertEqual(self.answer(install), (None, b""))
        self.assertEqual(self.hello()["phase"], "Installing")
        self.machine.put("/home/agent/go", "")
        self.answer(self.connect(["@power", "on"]))
        self.assertEqual(self.answer(self.connect(["install"]))[0], 0)
        self.assertEqual(self.hello()["phase"], "Installed")

    def test_garbage_on_the_socket_harms_nobody(self) -> None:
        for data in (b"", b"\n", b"{}\n", b"[]\n", b"null\n", b"\xff" * 100):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(self.socket)
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            self.assertEqual(self.answer(connection), (None, b""))
        self.assertTrue(self.hello()["ok"])

    def test_an_answer_ends_though_a_run_began_while_its_call_was_open(self) -> None:
        self.machine.describe(install=["touch runs; sleep 20"])
        open_call = socket.socket(socket.AF_UNIX)
        open_call.settimeout(10)
        open_call.connect(self.socket)
        open_call.sendall(b"{")
        self.hello()
        install = self.connect(["install"])
        self.until(lambda: self.machine.exists("/home/agent/runs"))
        open_call.sendall(json.dumps({"root": str(self.machine.root), "argv": ["@stats"], "faults": {}})[1:].encode() + b"\n")
        open_call.shutdown(socket.SHUT_WR)
        self.assertEqual(self.answer(open_call)[0], 0)
        install.close()

    def test_the_host_ends_with_its_stdin_and_takes_its_runs_along(self) -> None:
        self.machine.describe(install=["sleep 20"])
        install = self.connect(["install"])
        self.until(lambda: self.forks() == 1)
        self.host.stdin.close()
        self.assertEqual(self.host.wait(10), 0)
        self.assertEqual(self.answer(install), (None, b""))


class LongPolls(HostTest):
    def test_two_hundred_long_polls_cost_no_fork_until_something_changes(self) -> None:
        seen = self.hello()["progress"]
        before = self.forks()
        request = json.dumps({"nonce": "ab" * 32, "wait": 25, "seen": seen}).encode()
        polls = [self.connect(["ssh", "hello"], request) for _ in range(200)]
        self.assertEqual(self.forks(), before)
        self.assertEqual(self.answer(self.connect(["install"]))[0], 0)
        answers: list[str] = []
        readers = [threading.Thread(target=lambda poll=poll: answers.append(
            json.loads(self.answer(poll)[1])["progress"])) for poll in polls]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        self.assertEqual((len(answers), seen in answers), (200, False))
        self.assertEqual(self.forks(), before + 1 + 200)

    def test_a_long_poll_answers_after_its_wait(self) -> None:
        seen = self.hello()["progress"]
        self.assertEqual(self.hello(wait=1, seen=seen)["progress"], seen)

    def test_a_long_poll_that_is_no_request_is_answered_by_the_guest(self) -> None:
        for request in ([], {"wait": "x", "seen": ""}, {"nonce": 1, "wait": 5}):
            self.assertEqual(self.call("hello", request)["error"]["code"], "BadRequest")

    def test_machines_do_not_wake_one_another(self) -> None:
        other = self.new_machine()
        seen, before = self.hello()["progress"], self.forks()
        poll = self.connect(["ssh", "hello"], json.dumps({"nonce": "ab" * 32, "wait": 2, "seen": seen}).encode())
        self.assertEqual(self.answer(self.connect(["install"], machine=other))[0], 0)
        self.assertEqual(self.forks(), before + 1)
        self.assertEqual(json.loads(self.answer(poll)[1])["progress"], seen)


class Parts(unittest.TestCase):
    def test_the_boot_part_is_the_program_without_its_middle(self) -> None:
        self.assertEqual(BOOT, machine_host.boot_part(PROGRAM))
        self.assertTrue(BOOT.endswith(b"System()))\n"))
        self.assertNotIn(b"def configure", BOOT)
        self.assertEqual(PROGRAM.count(machine_host.CUT), 2)


if __name__ == "__main__":
    unittest.main()
