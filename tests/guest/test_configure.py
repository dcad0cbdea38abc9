"""`configure`, `restart`, `status`, `logs`, `probe`: what is applied, what is refused, what stays."""
from __future__ import annotations

import json
import shutil
import threading
from unittest import mock

from machine import (SECRET, TOKEN, GuestTest, archive, configuration, description, guest, machine_host, plain,
                     tag)

SOURCE = {"url": "https://git.example/agent", "ref": "v1", "directory": "/home/agent/app"}


class Configure(GuestTest):
    def test_the_first_one_writes_arms_and_starts(self) -> None:
        answer = self.assert_done(self.machine.configure(3))
        self.assertEqual((answer["armed"], answer["epoch"], answer["restarted"]), (True, 3, True))
        self.assertEqual((answer["configRevision"], answer["secretsTag"]), ("rev-1", "tag-1"))
        self.assertIn(SECRET, answer["changed"])
        self.assertNotIn("/etc/agentfleet/agent.json", answer["changed"])
        self.assertEqual((answer["unit"]["active"], answer["unit"]["restarts"]), ("active", 0))
        self.assertEqual(self.machine.text(SECRET), "KEY=one")
        self.assertEqual(self.machine.path(SECRET).stat().st_mode & 0o777, 0o600)
        self.assertEqual(self.machine.path("/home/agent").stat().st_mode & 0o777, 0o700)
        self.assertTrue(self.machine.armed())
        self.assertEqual(self.machine.voice(), ["start"])

    def test_the_same_again_changes_and_restarts_nothing(self) -> None:
        self.machine.configure(1)
        before = {path: path.stat().st_ino for path in self.machine.root.rglob("*") if path.is_file()}
        answer = self.assert_done(self.machine.configure(1))
        self.assertEqual((answer["changed"], answer["restarted"]), ([], False))
        self.assertEqual({path: path.stat().st_ino for path in self.machine.root.rglob("*") if path.is_file()}, before)
        self.assertEqual(self.machine.voice(), ["start"])

    def test_a_revision_that_the_unit_does_not_see_restarts_nothing(self) -> None:
        self.machine.configure(1)
        answer = self.machine.configure(2, configRevision="rev-2", packages=["git", "curl"], install=["false"])
        self.assertEqual((answer["changed"], answer["restarted"]), ([], False))
        self.assertEqual(self.machine.hello()["applied"]["configRevision"], "rev-2")

    def test_each_change_that_the_unit_sees_restarts_it(self) -> None:
        self.machine.configure(1)
        for change, path in (
                ({"files": [plain("/etc/agent.conf", "new")]}, "/etc/agent.conf"),
                ({"environment": {"LEVEL": "debug"}}, "/etc/agentfleet/environment"),
                ({"unit": {"name": "agent.service", "text": "[Service]\n"}}, "/etc/systemd/system/agent.service"),
                ({"secretPaths": []}, "/etc/systemd/system/agent.service.d/10-agentfleet.conf")):
            self.machine.configure(2)
            answer = self.assert_done(self.machine.configure(2, **change))
            self.assertEqual((answer["changed"], answer["restarted"]), ([path], True))

    def test_a_unit_that_was_stopped_is_started(self) -> None:
        self.machine.configure(1)
        self.machine.system().systemctl("stop", "agent.service")
        self.assertTrue(self.machine.configure(1)["restarted"])

    def test_the_drop_in_asks_whether_the_server_is_armed_and_has_its_secrets(self) -> None:
        self.machine.configure(1, secretPaths=["/home/agent/50%.env"])
        self.assertEqual(
            self.machine.text("/etc/systemd/system/agent.service.d/10-agentfleet.conf"),
            "[Unit]\nConditionPathExists=/home/agent/50%%.env\n[Service]\n"
            "ExecCondition=+/usr/local/lib/agentfleet/armed\nEnvironmentFile=/etc/agentfleet/environment\n")

    def test_environment_values_are_quoted_for_systemd(self) -> None:
        self.machine.configure(1, environment={"A": 'say "$HOME" `x` \\ # % ü\nnext'})
        self.assertEqual(self.machine.text("/etc/agentfleet/environment"),
                         'A="say \\"\\$HOME\\" \\`x\\` \\\\ # % ü\nnext"\n')

    def test_what_the_agent_changed_stays_until_the_declared_content_changes(self) -> None:
        self.machine.configure(1, {SECRET: b"declared"})
        self.machine.put(SECRET, "refreshed by the agent")
        answer = self.machine.configure(2, {SECRET: b"declared"})
        self.assertEqual((answer["changed"], self.machine.text(SECRET)), ([], "refreshed by the agent"))
        self.machine.configure(3, {SECRET: b"declared anew"})
        self.assertEqual(self.machine.text(SECRET), "declared anew")

    def test_a_missing_file_that_the_agent_may_change_is_written_again(self) -> None:
        self.machine.configure(1, {TOKEN: b"declared"})
        self.machine.path(TOKEN).unlink()
        self.machine.configure(1, {TOKEN: b"declared"})
        self.assertEqual(self.machine.text(TOKEN), "declared")

    def test_what_the_agent_may_not_change_is_put_back(self) -> None:
        self.machine.configure(1, may_change=False)
        for spoil in (lambda: self.machine.put(SECRET, "spoilt"), lambda: self.machine.path(SECRET).chmod(0o644)):
            spoil()
            answer = self.machine.configure(1, may_change=False)
            self.assertEqual((answer["changed"], answer["restarted"]), ([SECRET], True))
            self.assertEqual(self.machine.text(SECRET), "KEY=one")
            self.assertEqual(self.machine.path(SECRET).stat().st_mode & 0o777, 0o600)

    def test_files_no_longer_declared_are_removed(self) -> None:
        self.machine.configure(1, {SECRET: b"one", TOKEN: b"two"})
        self.machine.put("/home/agent/own", "the agent's")
        answer = self.machine.configure(2, {SECRET: b"one"}, files=[])
        self.assertEqual(answer["changed"], ["/etc/agent.conf", TOKEN])
        self.assertFalse(self.machine.exists(TOKEN) or self.machine.exists("/etc/agent.conf"))
        self.assertTrue(self.machine.exists("/home/agent/own"))

    def test_a_file_of_the_install_that_the_first_configure_drops_is_removed(self) -> None:
        self.assertEqual(self.machine.configure(1, files=[])["changed"][-1], "/etc/agent.conf")
        self.assertFalse(self.machine.exists("/etc/agent.conf"))

    def test_a_renamed_unit_leaves_nothing_of_the_old_one(self) -> None:
        self.machine.configure(1)
        self.machine.configure(2, unit={"name": "other.service", "text": "[Service]\n"})
        units = self.machine.system().units()
        self.assertEqual((units["agent.service"]["active"], units["agent.service"]["enabled"]), ("inactive", False))
        self.assertEqual(units["other.service"]["active"], "active")
        self.assertFalse(self.machine.exists("/etc/systemd/system/agent.service"))

    def test_new_packages_are_installed_and_a_failure_changes_nothing(self) -> None:
        self.machine.configure(1)
        system, asked = self.machine.system(), []
        system.apt_install = lambda names: asked.append(names) or guest.Ran(0, [])
        self.machine.configure(2, system=system, packages=["git", "jq", "curl"])
        self.assertEqual(asked, [["curl", "jq"]])
        self.machine.faults["packagesFail"] = True
        self.assert_refused(self.machine.configure(3, {SECRET: b"new"}, packages=["no-such"]), "PackageFailed")
        self.assertEqual(self.machine.text(SECRET), "KEY=one")

    def test_leftover_names_beside_files_are_gone_after_each_run(self) -> None:
        self.machine.configure(1)
        self.machine.configure(2, {SECRET: b"two"})
        self.assertEqual([path for path in self.machine.root.rglob("*.agentfleet-*")], [])


class Source(GuestTest):
    def setUp(self) -> None:
        self.machine = self.new_machine()
        self.machine.describe(source=SOURCE, update=["echo up >> /dev/null"])
        self.machine.install()
        self.machine.configure(1, source=SOURCE, update=["echo up >> updates"])
        self.first = self.head()

    def head(self) -> str:
        return self.machine.text("/home/agent/app/.git/HEAD")

    def test_a_new_ref_is_checked_out_and_updated(self) -> None:
        answer = self.machine.configure(2, source=SOURCE | {"ref": "v2"}, update=["echo up >> updates"])
        self.assertNotEqual(self.head(), self.first)
        self.assertTrue(answer["restarted"])
        self.assertEqual(self.machine.text("/home/agent/app/updates"), "up\nup\n")

    def test_what_takes_its_time_is_logged_on_the_server_as_the_installation_is(self) -> None:
        self.machine.path("/var/lib/agentfleet/changes.log").unlink()
        self.machine.configure(1, source=SOURCE, update=["echo up >> updates"])
        self.assertFalse(self.machine.exists("/var/lib/agentfleet/changes.log"))
        self.machine.configure(2, source=SOURCE | {"ref": "v2"}, update=["echo new; exit 3"], packages=["git", "jq"])
        log = [json.loads(line) for line in self.machine.text("/var/lib/agentfleet/changes.log").splitlines()]
        self.assertEqual([(step["name"], step["state"]) for step in log],
                         [("packages", "Done"), ("source", "Done"), ("update command 1", "Failed")])
        self.assertEqual(log[2]["tail"], ["CommandFailed: update command 1 ended with 3", "new"])
        self.assertRegex(log[0]["at"], "^20..-..-..T..:..:..Z$")

    def test_the_log_of_changes_does_not_grow_for_ever(self) -> None:
        log = "/var/lib/agentfleet/changes.log"
        self.machine.put(log, "x" * (guest.MAX_LOG + 1))
        self.machine.configure(1, source=SOURCE, update=["echo up >> updates"], packages=["git", "jq"])
        self.assertEqual(len(self.machine.text(log + ".1")), guest.MAX_LOG + 1)
        self.assertEqual(len(self.machine.text(log).splitlines()), 1)

    def test_an_unchanged_source_is_not_fetched(self) -> None:
        self.machine.faults["sourceFails"] = True
        answer = self.assert_done(self.machine.configure(2, source=SOURCE, update=["echo up >> updates"]))
        self.assertFalse(answer["restarted"])

    def test_a_failed_fetch_leaves_files_ref_and_agent(self) -> None:
        self.machine.faults["sourceFails"] = True
        answer = self.machine.configure(2, {SECRET: b"new"}, source=SOURCE | {"ref": "v2"})
        self.assertIn("unable to access", self.assert_refused(answer, "SourceFailed")["tail"][0])
        self.assert_untouched()

    def test_a_failed_update_brings_the_former_commit_back(self) -> None:
        answer = self.machine.configure(2, {SECRET: b"new"}, source=SOURCE | {"ref": "v2"},
                                        update=["true", "echo broken; exit 3"])
        error = self.assert_refused(answer, "CommandFailed")
        self.assertEqual((error["message"], error["tail"]), ("update command 2 ended with 3", ["broken"]))
        self.assert_untouched()

    def test_a_former_commit_that_does_not_come_back_is_told(self) -> None:
        system = self.machine.system()
        run_as = system.run_as
        system.run_as = lambda user, argv, *rest: \
            guest.Ran(1, []) if guest.BACK in argv else run_as(user, argv, *rest)
        answer = self.machine.configure(2, system=system, source=SOURCE | {"ref": "v2"}, update=["exit 3"])
        self.assertEqual(self.assert_refused(answer, "CommandFailed")["message"],
                         "update command 1 ended with 3; /home/agent/app did not go back to its former commit")

    def test_after_a_failed_update_the_former_ref_is_updated_again(self) -> None:
        self.machine.configure(2, source=SOURCE | {"ref": "v2"}, update=["exit 3"])
        self.machine.configure(3, source=SOURCE, update=["echo up >> updates"])
        self.assertEqual(self.machine.text("/home/agent/app/updates"), "up\nup\n")

    def test_a_source_folder_that_the_agent_removed_is_named(self) -> None:
        shutil.rmtree(self.machine.path("/home/agent/app"))
        answer = self.machine.call("probe", {"epoch": 1, "command": "true", "timeout": 1})
        self.assertIn("/home/agent/app: No such file", self.assert_refused(answer, "WriteFailed")["message"])

    def test_a_hanging_update_is_stopped_and_named(self) -> None:
        with mock.patch.object(machine_host, "COMMAND_TIMEOUT", 0.3):
            answer = self.machine.configure(2, source=SOURCE, update=["echo started; sleep 100"])
        error = self.assert_refused(answer, "CommandFailed")
        self.assertEqual((error["message"], error["tail"]), ("update command 1 did not end in time",
                                                             ["started"]))

    def test_a_version_that_does_not_stay_up_gives_way_to_the_commit_before_and_its_update(self) -> None:
        system = self.machine.system()
        system.systemctl = fails_to_start(system, 
                                          lambda: self.head() != self.first)
        answer = self.machine.configure(2, {SECRET: b"new"}, system=system, source=SOURCE | {"ref": "v2"},
                                        update=["echo v2 >> updates"])
        self.assert_refused(answer, "UnitFailed")
        self.assertTrue(answer["restored"])
        self.assertEqual((self.head(), self.machine.text(SECRET)), (self.first, "KEY=one"))
        self.assertEqual(self.machine.text("/home/agent/app/updates"), "up\nv2\nup\n")

    def assert_untouched(self) -> None:
        self.assertEqual(self.head(), self.first)
        self.assertEqual(self.machine.text(SECRET), "KEY=one")
        self.assertEqual(self.machine.hello()["applied"]["configRevision"], "rev-1")
        self.assertEqual((self.machine.voice(), self.machine.armed()), (["start"], True))
        self.assertEqual([path for path in self.machine.root.rglob("*.agentfleet-*")], [])


class Refusals(GuestTest):
    def test_a_lower_epoch_is_refused_by_every_verb_and_told_the_stored_one(self) -> None:
        self.machine.configure(5)
        requests = {"restart": {}, "status": {}, "logs": {"lines": 1}, "release": {},
                    "probe": {"command": "true", "timeout": 1}}
        answers = [self.machine.call(verb, {"epoch": 4, **more}) for verb, more in requests.items()]
        for answer in [*answers, self.machine.configure(4), self.machine.upgrade(b"", 4)]:
            self.assert_refused(answer, "StaleEpoch")
            self.assertEqual(answer["epoch"], 5)
        self.assertTrue(self.machine.armed())

    def test_looking_does_not_raise_the_epoch(self) -> None:
        self.machine.configure(5)
        for verb, more in (("status", {}), ("logs", {"lines": 1}), ("probe", {"command": "true", "timeout": 1})):
            self.assert_done(self.machine.call(verb, {"epoch": 9, **more}))
        self.assertEqual(self.machine.hello()["epoch"], 5)

    def test_a_higher_epoch_is_kept_even_if_the_verb_fails(self) -> None:
        self.machine.configure(5)
        self.machine.faults["unitFails"] = True
        self.assert_refused(self.machine.call("restart", {"epoch": 8}), "UnitFailed")
        self.assert_refused(self.machine.configure(7), "StaleEpoch")

    def test_another_instance_needs_a_higher_epoch(self) -> None:
        self.machine.configure(5)
        self.assert_refused(self.machine.configure(5, instance="uid-2"), "WrongInstance")
        self.assertEqual(self.machine.hello()["armed"], {"instance": "uid-1", "incarnation": 1})
        self.assert_done(self.machine.configure(6, instance="uid-2", incarnation=4))
        self.assertEqual(self.machine.hello()["armed"], {"instance": "uid-2", "incarnation": 4})
        self.assert_refused(self.machine.configure(6, instance="uid-1"), "WrongInstance")

    def test_a_server_that_is_not_installed_is_not_configured(self) -> None:
        machine = self.new_machine()
        self.assert_refused(machine.configure(2), "NotInstalled")
        machine.describe(install=["false"])
        machine.install()
        self.assert_refused(machine.configure(2, install=["true"]), "NotInstalled")
        self.assertFalse(machine.exists(SECRET) or machine.armed())

    def test_two_at_once_exclude_each_other(self) -> None:
        request, members = configuration(2, update=["while ! test -e go; do sleep 0.02; done"])
        first: list[dict] = []
        run = threading.Thread(target=lambda: first.append(self.machine.raw("configure", archive(request, members))[1]))
        run.start()
        while self.machine.state().get("source") != "unfinished":
            pass
        with mock.patch.object(guest, "LOCK_WAIT", 0.1):
            self.assert_refused(self.machine.configure(2), "Busy")
        self.machine.put("/home/agent/go", "")
        run.join()
        self.assert_done(first[0])

    def test_a_configure_that_was_overtaken_does_not_arm(self) -> None:
        self.machine.configure(1)
        request, members = configuration(2, {SECRET: b"new"}, update=["while ! test -e go; do sleep 0.02; done"])
        first: list[dict] = []
        run = threading.Thread(target=lambda: first.append(self.machine.raw("configure", archive(request, members))[1]))
        run.start()
        while self.machine.state().get("source") != "unfinished":
            pass
        with mock.patch.object(guest, "LOCK_WAIT", 0.1):
            self.assert_refused(self.machine.release(3), "Busy")
        self.machine.put("/home/agent/go", "")
        run.join()
        self.assert_refused(first[0], "StaleEpoch")
        self.assertEqual(self.machine.text(SECRET), "KEY=one")

    def test_a_configure_overtaken_while_it_swaps_puts_everything_back(self) -> None:
        self.machine.configure(1)
        swap = guest.Files.swap

        def overtaken(files, path: str) -> None:
            with guest.Guest(self.machine.system()).changing() as state:
                state["epoch"] = 3
            swap(files, path)
        with mock.patch.object(guest.Files, "swap", overtaken):
            self.assert_refused(self.machine.configure(2, {SECRET: b"two"}, configRevision="rev-2"), "StaleEpoch")
        self.assertEqual(self.machine.text(SECRET), "KEY=one")
        self.assertEqual(self.machine.hello()["applied"]["configRevision"], "rev-1")

    def test_a_missing_user_is_named(self) -> None:
        self.machine.faults["userMissing"] = True
        self.assertIn("agent", self.assert_refused(self.machine.configure(), "UserMissing")["message"])

    def test_a_full_disk_changes_nothing(self) -> None:
        self.machine.configure(1)
        before = self.machine.text("/var/lib/agentfleet/state.json")
        system = self.machine.system()
        system.write = full_for("two", system.write)
        self.assert_refused(self.machine.configure(1, {SECRET: b"two"}, system=system), "DiskFull")
        self.assertEqual(self.machine.text(SECRET), "KEY=one")
        self.assertEqual(self.machine.text("/var/lib/agentfleet/state.json"), before)
        self.assertEqual([path for path in self.machine.root.rglob("*.agentfleet-*")], [])

    def test_a_disk_full_from_the_start_is_told(self) -> None:
        self.machine.faults["diskFull"] = True
        self.assert_refused(self.machine.configure(1), "DiskFull")

    def test_a_read_only_file_system_is_told(self) -> None:
        system = self.machine.system()
        system.write = mock.Mock(side_effect=OSError(30, "Read-only file system"))
        self.assertIn("Read-only", self.assert_refused(self.machine.configure(1, system=system), "WriteFailed")["message"])

    def test_a_unit_that_does_not_start_keeps_its_files_and_the_next_configure_cures_it(self) -> None:
        self.machine.faults["unitFails"] = True
        error = self.assert_refused(self.machine.configure(1), "UnitFailed")
        self.assertIn("agent.service: Failed to start", error["tail"])
        self.assertEqual((self.machine.text(SECRET), self.machine.armed()), ("KEY=one", True))
        self.machine.faults.clear()
        self.assertTrue(self.assert_done(self.machine.configure(2))["restarted"])

    def test_what_does_not_stay_up_gives_way_to_what_ran_before(self) -> None:
        self.machine.configure(1)
        before = self.machine.hello()
        system = self.machine.system()
        system.systemctl = fails_to_start(system, lambda: self.machine.text(SECRET) == "two")
        answer = self.machine.configure(2, {SECRET: b"two"}, system=system, configRevision="rev-2",
                                        files=[plain("/etc/other.conf")])
        self.assert_refused(answer, "UnitFailed")
        self.assertTrue(answer["restored"])
        after = self.machine.hello()
        self.assertEqual((after["armed"], after["applied"], after["unit"]["active"]),
                         (before["armed"], before["applied"], "active"))
        self.assertEqual((self.machine.text(SECRET), self.machine.text("/etc/agent.conf")), ("KEY=one", "old"))
        self.assertFalse(self.machine.exists("/etc/other.conf"))
        self.assertEqual(json.loads(self.machine.text(guest.AGENT))["configRevision"], "rev-1")
        self.assertEqual([path for path in self.machine.root.rglob("*.agentfleet-*")], [])
        again = self.assert_done(self.machine.configure(3))
        self.assertEqual((again["changed"], again["restarted"]), ([], False))

    def test_another_unit_that_does_not_stay_up_gives_way_to_the_one_before(self) -> None:
        self.machine.configure(1)
        system = self.machine.system()
        system.systemctl = fails_to_start(system, lambda: self.machine.exists("/etc/systemd/system/other.service"))
        answer = self.machine.configure(2, system=system, unit={"name": "other.service", "text": "[Service]\n"})
        self.assertTrue(answer["restored"])
        units = self.machine.system().units()
        self.assertEqual(units["agent.service"]["active"], "active")
        self.assertNotEqual(units.get("other.service", {}).get("active"), "active")
        self.assertEqual(self.machine.hello()["unit"]["active"], "active")

    def test_it_is_told_when_what_ran_before_does_not_start_either(self) -> None:
        self.machine.configure(1)
        self.machine.faults["unitFails"] = True
        answer = self.machine.configure(2, {SECRET: b"two"}, configRevision="rev-2")
        self.assert_refused(answer, "UnitFailed")
        self.assertEqual((answer["restored"], self.machine.text(SECRET)), (False, "KEY=one"))
        self.machine.faults.clear()
        self.assertTrue(self.assert_done(self.machine.configure(3))["restarted"])

    def test_a_return_that_is_cut_is_never_told_as_applied(self) -> None:
        self.machine.configure(1)
        system = self.machine.system()
        system.systemctl = fails_to_start(system, lambda: self.machine.text(SECRET) == "two")
        with mock.patch.object(guest.Files, "restore", side_effect=SystemExit), self.assertRaises(SystemExit):
            self.machine.configure(2, {SECRET: b"two"}, system=system, configRevision="rev-2")
        self.assertIsNone(self.machine.hello()["applied"])
        self.assert_done(self.machine.configure(3))
        self.assertEqual(self.machine.text(SECRET), "KEY=one")

    def test_a_unit_that_crashes_after_its_start_is_told_with_its_last_lines(self) -> None:
        self.machine.faults["unitCrashes"] = True
        error = self.assert_refused(self.machine.configure(1), "UnitFailed")
        self.assertIn("auto-restart", error["message"])
        self.assertIn("status=1/FAILURE", error["tail"][-1])

    def test_a_unit_that_systemd_brought_up_again_meanwhile_did_not_stay_up(self) -> None:
        system = self.machine.system()
        real = system.unit_state
        system.unit_state = lambda name: real(name) | {"restarts": int(system.skipped > 0)}
        self.assert_refused(self.machine.configure(1, system=system), "UnitFailed")

    def test_a_unit_whose_secret_is_missing_is_not_called_up(self) -> None:
        self.assert_refused(self.machine.configure(1, secretPaths=["/home/agent/absent"]), "UnitFailed")
        self.assertEqual(self.machine.voice(), [])

    def test_a_masked_unit_is_told_before_anything_is_changed(self) -> None:
        self.machine.configure(1)
        unit = self.machine.path("/etc/systemd/system/agent.service")
        unit.unlink()
        unit.symlink_to("/dev/null")
        error = self.assert_refused(self.machine.configure(2, {SECRET: b"two"}), "UnitMasked")
        self.assertIn("systemctl unmask", error["message"])
        self.assertEqual(self.machine.text(SECRET), "KEY=one")
        self.assert_refused(self.machine.call("restart", {"epoch": 2}), "UnitMasked")

    def test_no_error_holds_a_value_of_the_request(self) -> None:
        canary = "canary-5f1d"
        bad = [{"secretsTag": canary + "\0"}, {"instance": canary, "incarnation": 2}, {"resumeKey": canary}]
        for change in bad:
            request, members = configuration(1, {SECRET: canary.encode()})
            answer = self.machine.raw("configure", archive(request | change, members))[1]
            self.assertNotIn(canary, str(answer))
        system = self.machine.system()
        system.write = mock.Mock(side_effect=ValueError(canary))
        answer = self.machine.configure(1, {SECRET: canary.encode()}, system=system)
        self.assert_refused(answer, "Internal")
        self.assertNotIn(canary, str(answer))


def full_for(content: str, write):
    """A disk that has no room for one content."""
    def limited(fd: int, data: bytes) -> None:
        if content.encode() == data:
            raise OSError(28, "No space left on device")
        write(fd, data)
    return limited


class Looking(GuestTest):
    def test_status_tells_unit_disk_and_what_is_applied(self) -> None:
        self.machine.configure(2)
        answer = self.assert_done(self.machine.call("status", {"epoch": 2}))
        self.assertEqual((answer["phase"], answer["epoch"], answer["unit"]["sub"]), ("Installed", 2, "running"))
        self.assertEqual(answer["applied"]["files"], {SECRET: tag(b"KEY=one")})
        self.assertGreaterEqual(answer["disk"]["totalBytes"], answer["disk"]["freeBytes"])

    def test_restart_restarts_and_tells_the_unit(self) -> None:
        self.machine.configure(2)
        answer = self.assert_done(self.machine.call("restart", {"epoch": 2}))
        self.assertEqual((answer["unit"]["active"], self.machine.voice()), ("active", ["start", "stop", "start"]))

    def test_a_server_that_is_not_armed_does_not_restart(self) -> None:
        self.assert_refused(self.machine.call("restart", {"epoch": 1}), "UnitFailed")
        self.assertEqual(self.machine.voice(), [])

    def test_logs_are_bounded_and_hold_no_control_characters(self) -> None:
        self.machine.configure(1)
        self.machine.put(".machine/journal", "x" * 1000 + "\n" + "\x1b[31mred\x1b[0m \x07bell\u202e\n" * 300)
        lines = self.machine.call("logs", {"epoch": 1, "lines": 200})["journal"]
        self.assertEqual(lines, ["red bell"] * 200)
        self.machine.put(".machine/journal", "x" * 1000)
        self.assertEqual(self.machine.call("logs", {"epoch": 1, "lines": 5})["journal"], ["x" * 300])

    def test_probe_answers_exit_code_and_last_lines(self) -> None:
        self.machine.configure(1)
        answer = self.machine.call("probe", {"epoch": 1, "command": "echo $LEVEL; exit 3", "timeout": 5})
        self.assertEqual((answer["exit"], answer["timedOut"], answer["output"]), (3, False, ["info"]))

    def test_a_probe_that_hangs_is_stopped(self) -> None:
        self.machine.configure(1)
        answer = self.machine.call("probe", {"epoch": 1, "command": "sleep 100 & sleep 100", "timeout": 1})
        self.assertEqual((answer["exit"], answer["timedOut"]), (-1, True))


class Description(GuestTest):
    def test_the_stored_description_is_the_one_that_was_sent(self) -> None:
        self.machine.configure(2, configRevision="rev-9")
        self.assertEqual(json.loads(self.machine.text("/etc/agentfleet/agent.json")), description(configRevision="rev-9"))

    def test_a_reboot_starts_an_armed_agent_and_no_other(self) -> None:
        self.machine.configure(2)
        self.machine.system().power("off")
        self.machine.system().power("on")
        self.assertEqual(self.machine.voice(), ["start", "stop", "start"])
        other = self.new_machine()
        other.install()
        other.system().power("on")
        self.assertEqual(other.voice(), [])


def fails_to_start(system, broken):
    """Calls of systemctl of which `restart` fails while something is broken."""
    def systemctl(*arguments):
        if arguments[0] == "restart" and broken():
            return guest.Ran(1, ["it died"])
        return type(system).systemctl(system, *arguments)
    return systemctl
