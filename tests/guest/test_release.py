"""`release` and what it keeps; `upgrade` of the program itself."""
from __future__ import annotations

import base64
import json
from unittest import mock

from machine import BOOT, PROGRAM, SECRET, TOKEN, GuestTest, boot_guest, guest, tag

LIVE = "/usr/local/lib/agentfleet/guest"


class Release(GuestTest):
    def test_it_disarms_stops_disables_and_removes_secrets(self) -> None:
        self.machine.configure(1, may_change=False)
        answer = self.assert_done(self.machine.release(2))
        self.assertEqual((answer["released"], answer["kept"]), (True, []))
        self.assertFalse(self.machine.exists(SECRET) or self.machine.armed())
        self.assertTrue(self.machine.exists("/etc/agent.conf"))
        self.assertEqual(self.machine.voice(), ["start", "stop"])
        hello = self.machine.hello()
        self.assertEqual((hello["armed"], hello["everArmed"], hello["epoch"], hello["applied"]), (None, True, 2, None))

    def test_a_released_agent_stays_silent_after_power_on_and_by_hand(self) -> None:
        self.machine.configure(1)
        self.machine.release(2)
        self.machine.system().power("off")
        self.machine.system().power("on")
        self.machine.put(SECRET, "put back by somebody")
        self.machine.system().systemctl("start", "agent.service")
        self.assertEqual(self.machine.voice(), ["start", "stop"])

    def test_a_copy_of_an_armed_server_is_not_armed(self) -> None:
        self.machine.put("/var/lib/cloud/data/instance-id", "1\n")
        self.machine.configure(1)
        self.assertTrue(self.machine.armed() and self.machine.hello()["armed"])
        self.machine.put("/var/lib/cloud/data/instance-id", "2\n")
        self.assertFalse(self.machine.armed() or self.machine.hello()["armed"])

    def test_a_late_configure_of_a_lower_epoch_is_refused(self) -> None:
        self.machine.configure(1)
        self.machine.release(3)
        self.assert_refused(self.machine.configure(2), "StaleEpoch")
        self.assertEqual(self.machine.voice(), ["start", "stop"])

    def test_what_the_agent_changed_comes_back_on_the_same_server(self) -> None:
        self.machine.configure(1)
        self.machine.put(SECRET, "refreshed")
        kept = self.machine.release(2)["kept"]
        self.assertEqual(kept, [{"path": SECRET, "mode": "0600", "owner": "agent", "declaredTag": tag(b"KEY=one"),
                                 "content": base64.b64encode(b"refreshed").decode()}])
        aside = self.machine.path("/var/lib/agentfleet/kept/files.json")
        self.assertEqual((aside.stat().st_mode & 0o777, aside.parent.stat().st_mode & 0o777), (0o600, 0o700))
        self.assert_done(self.machine.configure(3))
        self.assertEqual(self.machine.text(SECRET), "refreshed")
        self.assertFalse(aside.exists())

    def test_declared_anew_it_does_not_come_back(self) -> None:
        self.machine.configure(1)
        self.machine.put(SECRET, "refreshed")
        self.machine.release(2)
        self.machine.configure(3, {SECRET: b"KEY=two"})
        self.assertEqual(self.machine.text(SECRET), "KEY=two")

    def test_it_can_be_brought_to_another_server(self) -> None:
        self.machine.configure(1)
        self.machine.put(SECRET, "refreshed")
        kept = self.machine.release(2)["kept"]
        other = self.new_machine("server-2")
        other.install()
        self.assert_done(other.configure(3, kept=kept))
        self.assertEqual(other.text(SECRET), "refreshed")
        other.put(SECRET, "refreshed again")
        other.configure(3, kept=kept)
        self.assertEqual(other.text(SECRET), "refreshed again")

    def test_what_was_brought_along_is_newer_than_what_was_kept_here(self) -> None:
        self.machine.configure(1)
        kept = self.machine.release(2)["kept"]
        kept[0]["content"] = base64.b64encode(b"newer").decode()
        self.machine.configure(3, kept=kept)
        self.assertEqual(self.machine.text(SECRET), "newer")

    def test_a_second_release_answers_the_same(self) -> None:
        self.machine.configure(1)
        first = self.machine.release(2)
        self.assertEqual(self.machine.release(2)["kept"], first["kept"])
        self.assertEqual(self.machine.release(3)["kept"], first["kept"])

    def test_a_release_before_any_configure_stores_the_epoch(self) -> None:
        self.assertEqual(self.assert_done(self.machine.release(4))["kept"], [])
        self.assert_refused(self.machine.configure(3), "StaleEpoch")
        self.assertFalse(self.machine.hello()["everArmed"])

    def test_stubborn_processes_are_told_and_the_server_stays_disarmed(self) -> None:
        self.machine.configure(1)
        self.machine.faults["stubborn"] = True
        self.assert_refused(self.machine.release(2), "StillRunning")
        self.assertFalse(self.machine.armed())
        self.assertTrue(self.machine.exists(SECRET))
        self.machine.faults.clear()
        self.assertEqual(len(self.assert_done(self.machine.release(2))["kept"]), 1)

    def test_too_much_to_answer_stays_on_the_server(self) -> None:
        self.machine.configure(1, {SECRET: b"small", TOKEN: b"big"})
        self.machine.put(TOKEN, "x" * 300_000)
        answer = self.machine.release(2)
        self.assertLess(len(json.dumps(answer)), 256 << 10)
        contents = {file["path"]: file["content"] for file in answer["kept"]}
        self.assertIsNone(contents[TOKEN])
        self.assert_done(self.machine.configure(3, {SECRET: b"small", TOKEN: b"big"}, kept=answer["kept"]))
        self.assertEqual(len(self.machine.text(TOKEN)), 300_000)

    def test_a_link_in_the_way_to_a_secret_keeps_nobody_from_the_release(self) -> None:
        self.machine.configure(1, {SECRET: b"one", TOKEN: b"two"})
        folder = self.machine.path(TOKEN).parent
        folder.rename(self.machine.path("/home/agent/moved"))
        folder.symlink_to(self.machine.path("/home/agent/moved"))
        kept = self.assert_done(self.machine.release(2))["kept"]
        self.assertEqual([file["path"] for file in kept], [SECRET])
        self.assertEqual(self.machine.voice(), ["start", "stop"])
        self.assertFalse(self.machine.exists(SECRET))
        self.assertTrue(self.machine.exists("/home/agent/moved/credentials.json"), "not the guest's any more")

    def test_the_agent_is_silent_before_a_file_is_touched(self) -> None:
        self.machine.configure(1)
        with mock.patch.object(guest.Files, "tidy", mock.Mock(side_effect=guest.Failure("WriteFailed", "read-only"))):
            self.assert_refused(self.machine.release(2), "WriteFailed")
        self.assertEqual(self.machine.voice(), ["start", "stop"])

    def test_a_link_in_a_secrets_place_is_removed_and_not_followed(self) -> None:
        self.machine.configure(1)
        self.machine.put("/etc/shadow", "root's")
        self.machine.path(SECRET).unlink()
        self.machine.path(SECRET).symlink_to(self.machine.path("/etc/shadow"))
        self.assertEqual(self.assert_done(self.machine.release(2))["kept"], [])
        self.assertFalse(self.machine.exists(SECRET))
        self.assertEqual(self.machine.text("/etc/shadow"), "root's")


class Upgrade(GuestTest):
    def setUp(self) -> None:
        super().setUp()
        self.machine.put(LIVE, BOOT.decode())

    def test_the_boot_part_takes_the_whole_program_and_then_configures(self) -> None:
        self.assert_refused(self.machine.raw("configure", b"", boot_guest)[1], "BadCommand")
        self.assert_done(self.machine.upgrade(PROGRAM, on=boot_guest))
        self.assertEqual(self.machine.path(LIVE).read_bytes(), PROGRAM)
        self.assertEqual(self.machine.path(LIVE).stat().st_mode & 0o777, 0o755)
        self.assertEqual(self.machine.path(LIVE + ".previous").read_bytes(), BOOT)
        self.assert_done(self.machine.configure(1))

    def test_the_same_program_again_keeps_the_last_one(self) -> None:
        self.machine.upgrade(PROGRAM)
        self.machine.upgrade(PROGRAM)
        self.assertEqual(self.machine.path(LIVE + ".previous").read_bytes(), BOOT)

    def test_a_program_that_is_not_the_announced_one_is_refused(self) -> None:
        self.assert_refused(self.machine.upgrade(PROGRAM, sha256="0" * 64), "UpgradeRefused")
        self.assertEqual(self.machine.path(LIVE).read_bytes(), BOOT)

    def test_a_program_that_does_not_run_is_refused(self) -> None:
        for broken in (b"", b"def (", b"raise SystemExit(3)", b"import no_such_module", PROGRAM[:-400]):
            self.assert_refused(self.machine.upgrade(broken), "UpgradeRefused")
            self.assertEqual(self.machine.path(LIVE).read_bytes(), BOOT)

    def test_a_stale_upgrade_is_refused(self) -> None:
        self.machine.configure(4)
        self.assert_refused(self.machine.upgrade(PROGRAM, 3), "StaleEpoch")

    def test_the_epoch_of_an_upgrade_is_kept(self) -> None:
        self.machine.upgrade(PROGRAM, 6, on=boot_guest)
        self.assertEqual(self.machine.hello(guest)["epoch"], 6)
