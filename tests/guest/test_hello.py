"""`hello`: proofs, progress, long poll."""
from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from typing import Any

from machine import BOOT_KEY, HOST_KEY, RESUME_KEY, GuestTest, guest



def expected(key: str, nonce: str, blob: bytes = HOST_KEY) -> str:
    text = "agentfleet hello v1\nfleet-1\nserver-1\n" + nonce + "\n" + hashlib.sha256(blob).hexdigest()
    return hmac.HMAC(bytes.fromhex(key), text.encode(), hashlib.sha256).hexdigest()


# `openssl dgst -mac HMAC` over the protocol's text with BOOT_KEY and the nonce abab…
KNOWN = "d544e1f7bce58baa313fda8f4d750cfaee13462e194f42c13c638229ddadc5ec"


class Hello(GuestTest):
    def test_the_proof_is_the_one_that_openssl_computes(self) -> None:
        self.assertEqual(self.machine.hello()["macs"]["boot"], KNOWN)

    def test_the_boot_key_proves_the_host_key_before_the_first_configure(self) -> None:
        answer = self.machine.hello()
        self.assertEqual(answer["macs"], {"boot": expected(BOOT_KEY, "ab" * 32)})
        self.assertEqual(answer["server"], "server-1")

    def test_the_resume_key_proves_it_afterwards_and_the_boot_key_is_gone(self) -> None:
        self.machine.configure()
        self.assertEqual(self.machine.hello()["macs"], {"resume": expected(RESUME_KEY, "ab" * 32)})
        self.assertNotIn("bootProofKey", self.machine.text("/etc/agentfleet/identity.json"))

    def test_the_host_key_is_read_at_each_call(self) -> None:
        self.machine.put("/etc/ssh/ssh_host_ed25519_key.pub", "ssh-ed25519 AAAA x")
        self.assertEqual(self.machine.hello()["macs"]["boot"], expected(BOOT_KEY, "ab" * 32, b"\0\0\0"))

    def test_hello_tells_what_is_armed_and_applied(self) -> None:
        self.machine.configure(3)
        answer = self.machine.hello()
        self.assertEqual(answer["armed"], {"instance": "uid-1", "incarnation": 1})
        self.assertEqual((answer["epoch"], answer["everArmed"]), (3, True))
        self.assertEqual(answer["applied"]["configRevision"], "rev-1")
        self.assertEqual(answer["applied"]["secretsTag"], "tag-1")
        self.assertEqual(list(answer["applied"]["files"]), ["/home/agent/.env"])
        self.assertEqual(answer["unit"]["active"], "active")

    def test_a_long_poll_ends_as_soon_as_the_state_changes(self) -> None:
        seen, answers = self.machine.hello()["progress"], []
        real = self.machine.system()
        real.now, real.sleep = time.monotonic, time.sleep
        poll = threading.Thread(target=lambda: answers.append(self.machine.call(
            "hello", {"nonce": "ab" * 32, "wait": 25, "seen": seen}, system=real)))
        poll.start()
        self.assertEqual(answers, [])
        self.machine.configure()
        poll.join(20)
        self.assertNotEqual(answers[0]["progress"], seen)

    def test_a_long_poll_of_a_calm_server_ends_after_its_wait(self) -> None:
        system, seen = self.machine.system(), self.machine.hello()["progress"]
        before = system.skipped
        answer = self.machine.call("hello", {"nonce": "ab" * 32, "wait": 5, "seen": seen}, system=system)
        self.assertEqual(answer["progress"], seen)
        self.assertAlmostEqual(system.skipped - before, 5, delta=0.5)

    def of_an_installation(self, *changes: list[str]) -> dict[str, Any]:
        """What a long poll answers when its server's steps come to stand so, one change with each look."""
        def stand(*states: str) -> None:
            steps = [{"name": "install", "state": state, "seconds": 0, "tail": []} for state in states]
            self.machine.put("/var/lib/agentfleet/state.json", json.dumps(self.machine.state() | {"steps": steps}))
        stand("Running", "Pending", "Pending")
        seen, system, left = self.machine.hello()["progress"], self.machine.system(), list(changes)
        skip = system.sleep

        def sleep(seconds: float) -> None:
            skip(seconds)
            if left:
                stand(*left.pop(0))
        system.sleep = sleep
        return self.machine.call("hello", {"nonce": "ab" * 32, "wait": 25, "seen": seen}, system=system)

    def test_steps_that_come_in_a_row_are_told_with_the_last_one(self) -> None:
        answer = self.of_an_installation(["Done", "Running", "Pending"], ["Done", "Done", "Running"], ["Done"] * 3)
        self.assertEqual((answer["phase"], [step["state"] for step in answer["steps"]]), ("Installed", ["Done"] * 3))

    def test_a_step_that_lasts_keeps_the_one_before_from_nobody(self) -> None:
        answer = self.of_an_installation(["Done", "Running", "Pending"])
        self.assertEqual((answer["phase"], [step["state"] for step in answer["steps"]]),
                         ("Installing", ["Done", "Running", "Pending"]))

    def test_hello_changes_nothing(self) -> None:
        before = {path: path.stat().st_mtime_ns for path in self.machine.root.rglob("*") if path.is_file()}
        self.machine.hello()
        after = {path: path.stat().st_mtime_ns for path in self.machine.root.rglob("*") if path.is_file()}
        self.assertEqual(before, after)

    def test_a_damaged_state_is_an_error_and_never_a_lower_epoch(self) -> None:
        self.machine.configure(7)
        self.machine.put("/var/lib/agentfleet/state.json", "{")
        self.assert_refused(self.machine.hello(), "Internal")
        self.assert_refused(self.machine.configure(1), "Internal")

    def test_no_key_or_secret_is_answered(self) -> None:
        self.machine.configure()
        for answer in (self.machine.hello(), self.machine.call("status", {"epoch": 1})):
            for secret in (BOOT_KEY, RESUME_KEY, "KEY=one"):
                self.assertNotIn(secret, str(answer))

    def test_the_program_tells_its_version(self) -> None:
        self.assertEqual(self.machine.hello()["guest"], guest.VERSION)
