"""`install`: steps in order, told by hello, resumed where they ended."""
from __future__ import annotations

import errno
import io
import os
import threading
import time
import unittest
from typing import Any

from machine import SECRET, GuestTest, boot_guest, guest, plain


class Install(GuestTest):
    def setUp(self) -> None:
        self.machine = self.new_machine()

    def steps(self) -> dict[str, str]:
        return {step["name"]: step["state"] for step in self.machine.hello()["steps"]}

    def test_before_install_the_phase_is_pending(self) -> None:
        self.assertEqual(self.machine.hello()["phase"], "Pending")

    def test_steps_run_in_order_and_never_start_the_agent(self) -> None:
        source = {"url": "https://git.example/agent", "ref": "main", "directory": "/home/agent/app"}
        self.machine.describe(source=source, install=["echo made > made", "cat /dev/null made"])
        self.assertEqual(self.machine.install(), 0)
        self.assertEqual(list(self.steps()), ["packages", "source", "files", "install 1", "install 2"])
        self.assertEqual(self.machine.hello()["phase"], "Installed")
        self.assertEqual(self.machine.text("/home/agent/app/made"), "made\n")
        self.assertEqual(self.machine.text("/etc/agent.conf"), "old")
        self.assertEqual(self.machine.voice(), [])
        self.assertIn("install 2", self.machine.text("/var/lib/agentfleet/install.log"))

    def test_the_boot_part_installs_as_the_whole_program_does(self) -> None:
        self.machine.describe(install=["echo hello"])
        self.assertEqual(self.machine.install(boot_guest), 0)
        answer = self.machine.hello(boot_guest)
        self.assertEqual((answer["phase"], answer["guest"]), ("Installed", "1.0.0-boot"))
        self.assertEqual(self.machine.hello()["steps"], answer["steps"])

    def test_a_failed_command_is_told_with_its_last_lines(self) -> None:
        self.machine.describe(install=["seq 100; echo; echo no such thing >&2; exit 7", "touch never"])
        self.assertEqual(self.machine.install(), 1)
        answer = self.machine.hello()
        failed = answer["steps"][3]
        self.assertEqual((answer["phase"], failed["state"]), ("Failed", "Failed"))
        self.assertEqual(failed["tail"][0], "CommandFailed: the command ended with 7")
        self.assertEqual(failed["tail"][-2:], ["100", "no such thing"])
        self.assertLessEqual(len(failed["tail"]), 21)
        self.assertEqual(self.steps()["install 2"], "Pending")

    def test_what_fails_before_the_first_step_is_told_like_a_step_and_mended_by_another_run(self) -> None:
        self.machine.describe(install=["echo hello"])
        whole = self.machine.text("/etc/agentfleet/agent.json")
        self.machine.put("/etc/agentfleet/agent.json", whole[:40])
        self.assertEqual(self.machine.install(boot_guest), 1)
        answer = self.machine.hello(boot_guest)
        self.assertEqual((answer["phase"], answer["steps"][0]["name"]), ("Failed", "guest"))
        self.assertIn("JSONDecodeError", answer["steps"][0]["tail"][0])
        self.machine.put("/etc/agentfleet/agent.json", whole)
        self.assertEqual(self.machine.install(boot_guest), 0)
        self.assertEqual(self.machine.hello(boot_guest)["phase"], "Installed")

    def test_install_goes_on_with_the_step_that_failed(self) -> None:
        self.machine.describe(install=["echo once >> first", "test -e ready"])
        self.assertEqual(self.machine.install(), 1)
        self.machine.put("/home/agent/ready", "")
        self.assertEqual(self.machine.install(), 0)
        self.assertEqual(self.machine.text("/home/agent/first"), "once\n")
        self.assertEqual(self.machine.hello()["phase"], "Installed")

    def test_a_second_install_does_nothing(self) -> None:
        self.machine.describe(install=["echo once >> first"])
        self.machine.install()
        before = self.machine.hello()["progress"]
        self.assertEqual(self.machine.install(), 0)
        self.assertEqual(self.machine.text("/home/agent/first"), "once\n")
        self.assertEqual(self.machine.hello()["progress"], before)

    def test_packages_source_and_user_fail_with_their_own_codes(self) -> None:
        source = {"url": "https://git.example/agent", "ref": "main", "directory": "/home/agent/app"}
        self.machine.describe(source=source)
        for fault, code in (("packagesFail", "PackageFailed"), ("sourceFails", "SourceFailed"),
                            ("userMissing", "UserMissing")):
            machine = self.new_machine()
            machine.describe(source=source)
            machine.faults[fault] = True
            self.assertEqual(machine.install(), 1)
            tails = [step["tail"][0] for step in machine.hello()["steps"] if step["state"] == "Failed"]
            self.assertEqual([line.split(":")[0] for line in tails], [code])

    def test_a_running_step_is_seen_by_hello(self) -> None:
        self.machine.describe(install=["while ! test -e go; do sleep 0.02; done"])
        run = threading.Thread(target=self.machine.install)
        run.start()
        deadline = time.monotonic() + 20
        while self.steps().get("install 1") != "Running" and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertEqual(self.machine.hello()["phase"], "Installing")
        self.machine.put("/home/agent/go", "")
        run.join()
        self.assertEqual(self.machine.hello()["phase"], "Installed")

    def test_two_installs_at_once_exclude_each_other(self) -> None:
        with guest.Files(self.machine.system()).locked("/run/agentfleet.lock", 0):
            with self.assertRaises(guest.Failure) as refused:
                self.machine.install()
        self.assertEqual(refused.exception.error["code"], "Busy")
        self.assertEqual(self.machine.hello()["phase"], "Pending")

    def failing_write(self, number: int, error: int) -> Any:
        """A system whose write of that number fails, and each one after it, but in memory."""
        system, left = self.machine.system(boot_guest), number
        write = system.write

        def failing(fd: int, data: bytes) -> None:
            nonlocal left
            left -= 1
            if left < 0 and not os.readlink(f"/proc/self/fd/{fd}").startswith(f"{self.machine.root}/run/"):
                raise OSError(error, os.strerror(error))
            write(fd, data)

        system.write = failing
        return system

    def test_whatever_cannot_be_stored_is_told_and_mended_by_another_run(self) -> None:
        for error, words in ((errno.ENOSPC, "DiskFull: /"), (errno.EROFS, "Read-only file system")):
            for number in range(20):
                self.machine = self.new_machine()
                self.machine.describe(install=["echo hello"])
                system = self.failing_write(number, error)
                code = boot_guest.main(["install"], io.BytesIO(), io.BytesIO(), system)
                answer = self.machine.hello(boot_guest)
                if code == 0:
                    break
                tails = [line for step in answer["steps"] for line in step["tail"]]
                self.assertEqual(answer["phase"], "Failed", number)
                self.assertTrue(any(words in line for line in tails), tails)
                self.assertEqual(self.machine.install(boot_guest), 0)
                answer = self.machine.hello(boot_guest)
                self.assertEqual((answer["phase"], len(answer["steps"])), ("Installed", 4))
            self.assertGreater(number, 8)
            self.assertEqual(answer["phase"], "Installed")

    def restored(self, **changes: Any) -> dict[str, Any]:
        """The same disk on another server, as cloud-init leaves it; answers what it says of itself."""
        self.machine.put("/etc/agentfleet/identity.json", '{"fleet": "fleet-1", "server": "server-2"}')
        self.machine.describe(incarnation=2, **changes)
        return self.machine.hello()

    def test_a_disk_from_another_servers_snapshot_says_nothing_of_that_one_but_its_epoch(self) -> None:
        self.machine.install()
        self.machine.configure(5)
        answer = self.restored()
        self.assertEqual((answer["phase"], answer["armed"], answer["macs"]), ("Pending", None, {}))
        self.assertEqual((answer["epoch"], answer["everArmed"], answer["applied"]), (5, True, None))
        self.assertFalse(self.machine.armed())

    def test_what_an_agent_wrote_on_its_disk_is_there_on_the_server_that_is_made_of_it(self) -> None:
        once = ["test ! -e memory; echo empty > memory"]
        self.machine.describe(install=once)
        self.machine.install()
        self.assert_done(self.machine.configure(5, install=once))
        self.machine.put("/home/agent/memory", "much")
        self.machine.put(SECRET, "KEY=refreshed")
        self.restored(install=once, packages=["git", "jq"])
        self.assertEqual(self.machine.install(), 0)
        self.assertEqual(self.steps(), dict.fromkeys(["packages", "source", "files"], "Done"))
        self.assert_done(self.machine.configure(6, install=once, packages=["git", "jq"], incarnation=2))
        self.assertTrue(self.machine.armed())
        self.assertEqual(self.machine.text("/home/agent/memory"), "much")
        self.assertEqual(self.machine.text(SECRET), "KEY=refreshed")
        self.restored(install=once)
        self.machine.install()
        self.assert_done(self.machine.configure(7, {SECRET: b"KEY=two"}, install=once, incarnation=2))
        self.assertEqual(self.machine.text(SECRET), "KEY=two", "its declared content changed")

    def test_a_disk_on_which_no_agent_ran_is_installed_as_any_other(self) -> None:
        self.machine.describe(install=["true"])
        self.machine.install()
        self.restored(install=["true"])
        self.machine.install()
        self.assertEqual(list(self.steps()), ["packages", "source", "files", "install 1"])

    def test_a_disk_of_another_user_is_told(self) -> None:
        self.machine.install()
        self.machine.configure(5)
        self.restored(user="bot")
        self.machine.install()
        refused = self.assert_refused(self.machine.configure(6, user="bot", incarnation=2), "UserMissing")
        self.assertIn("belongs to agent", refused["message"])

    def test_a_plain_file_gets_missing_folders_and_its_mode(self) -> None:
        self.machine.describe(files=[plain("/home/agent/a/b/run.sh", "#!/bin/sh", mode="0755")])
        self.machine.install()
        self.assertEqual(self.machine.path("/home/agent/a/b/run.sh").stat().st_mode & 0o777, 0o755)
        self.assertEqual(self.machine.path("/home/agent/a").stat().st_mode & 0o777, 0o755)


if __name__ == "__main__":
    unittest.main()
