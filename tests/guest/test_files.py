"""Files: never through a link that the agent planted, and never half, wherever a run is cut."""
from __future__ import annotations

import itertools
import os
import shutil
import unittest
from unittest import mock

from machine import SECRET, TOKEN, GuestTest, Machine, archive, configuration, guest, plain


class Links(GuestTest):
    def setUp(self) -> None:
        super().setUp()
        self.machine.put("/etc/precious", "root's")

    def assert_precious(self) -> None:
        self.assertEqual(self.machine.text("/etc/precious"), "root's")
        self.assertEqual(self.machine.path("/etc/precious").stat().st_mode & 0o777, 0o600)

    def test_a_link_planted_at_a_file_is_replaced_and_not_followed(self) -> None:
        self.machine.path("/etc/precious").chmod(0o600)
        self.machine.configure(1)
        self.machine.path(SECRET).unlink()
        self.machine.path(SECRET).symlink_to(self.machine.path("/etc/precious"))
        self.assert_done(self.machine.configure(2, {SECRET: b"two"}))
        self.assertFalse(self.machine.path(SECRET).is_symlink())
        self.assertEqual(self.machine.text(SECRET), "two")
        self.assert_precious()

    def test_a_link_planted_at_the_staging_name_is_not_followed(self) -> None:
        self.machine.path("/etc/precious").chmod(0o600)
        self.machine.configure(1)
        self.machine.path("/home/agent/.env").with_name("..env.agentfleet-new").symlink_to(
            self.machine.path("/etc/precious"))
        self.assert_done(self.machine.configure(2, {SECRET: b"two"}))
        self.assert_precious()

    def test_a_link_planted_at_a_parent_folder_is_refused(self) -> None:
        self.machine.path("/etc/elsewhere").mkdir()
        self.machine.path("/home/agent").mkdir(parents=True)
        self.machine.path("/home/agent/.claude").symlink_to(self.machine.path("/etc/elsewhere"))
        error = self.assert_refused(self.machine.configure(1, {TOKEN: b"secret"}), "WriteFailed")
        self.assertIn("link", error["message"])
        self.assertIn(TOKEN, error["message"])
        self.assertEqual(os.listdir(self.machine.path("/etc/elsewhere")), [])
        self.assertFalse(self.machine.armed())

    def test_a_folder_that_another_run_makes_in_the_same_moment_is_used(self) -> None:
        makes = os.mkdir

        def overtaken(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            makes(path, mode, dir_fd=dir_fd)
            if path == ".claude":
                makes(path, mode, dir_fd=dir_fd)

        with mock.patch.object(os, "mkdir", overtaken):
            self.assert_done(self.machine.configure(1, {TOKEN: b"secret"}, secretPaths=[TOKEN]))
        self.assertEqual(self.machine.text(TOKEN), "secret")

    def test_removing_an_undeclared_file_does_not_follow_a_planted_parent(self) -> None:
        self.machine.configure(1, {SECRET: b"one", TOKEN: b"two"})
        self.machine.put("/etc/elsewhere/credentials.json", "root's")
        shutil.rmtree(self.machine.path(TOKEN).parent)
        self.machine.path(TOKEN).parent.symlink_to(self.machine.path("/etc/elsewhere"))
        self.machine.configure(2, {SECRET: b"one"})
        self.assertEqual(self.machine.text("/etc/elsewhere/credentials.json"), "root's")

    def test_a_fifo_in_a_files_place_does_not_hang(self) -> None:
        self.machine.configure(1)
        self.machine.path(SECRET).unlink()
        os.mkfifo(self.machine.path(SECRET))
        self.assert_done(self.machine.configure(1))
        self.assertEqual(self.machine.text(SECRET), "KEY=one")

    def test_a_folder_in_a_files_place_is_told_and_everything_comes_back(self) -> None:
        self.machine.configure(1, {SECRET: b"one"})
        self.machine.path("/etc/extra").mkdir()
        answer = self.machine.configure(2, {SECRET: b"two"}, files=[plain("/etc/agent.conf", "new"), plain("/etc/extra")])
        self.assert_refused(answer, "WriteFailed")
        self.assertEqual((self.machine.text(SECRET), self.machine.text("/etc/agent.conf")), ("one", "old"))
        self.assertTrue(self.machine.path("/etc/extra").is_dir())

    def test_a_hard_link_to_a_file_is_not_written_through(self) -> None:
        self.machine.configure(1)
        os.link(self.machine.path(SECRET), self.machine.path("/home/agent/link"))
        self.machine.configure(2, {SECRET: b"two"})
        self.assertEqual(self.machine.text("/home/agent/link"), "KEY=one")

    @unittest.skipUnless(os.getuid() == 0, "owners need root")
    def test_owners_are_set_on_files_and_on_the_folders_made_for_them(self) -> None:
        system = self.machine.system()
        system.chown = lambda fd, uid, gid: os.fchown(fd, uid, gid)
        system.user = lambda name: (0, 0, "/root") if name == "root" else (12345, 12345, "/home/agent")
        self.assert_done(self.machine.configure(1, {TOKEN: b"two"}, system=system, secretPaths=[TOKEN]))
        owners = [self.machine.path(path).stat().st_uid for path in (TOKEN, "/home/agent/.claude", "/etc/systemd/system")]
        self.assertEqual(owners, [12345, 12345, 0])
        os.chown(self.machine.path(TOKEN), 0, 0)
        self.assertEqual(self.machine.configure(1, {TOKEN: b"two"}, system=system, may_change=False,
                                                secretPaths=[TOKEN])["changed"], [TOKEN])


class Atomicity(GuestTest):
    """A run is killed right before each change of the file system in turn."""
    CALLS = ("rename", "link", "unlink", "fsync", "mkdir", "fchmod")

    def setUp(self) -> None:
        super().setUp()
        self.machine.configure(1, {SECRET: b"one", TOKEN: b"one"})
        self.machine.put(TOKEN, "refreshed")

    def killed_at(self, point: int, verb: str, data: bytes) -> bool:
        """Whether the run was killed before it could end."""
        child = os.fork()
        if child == 0:
            count = itertools.count(1)

            def deadly(call):
                return lambda *args, **more: os._exit(9) if next(count) == point else call(*args, **more)
            for name in self.CALLS:
                setattr(os, name, deadly(getattr(os, name)))
            self.machine.raw(verb, data)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9

    def each_point(self, verb: str, data: bytes):
        """The machine after a kill at each point of a run, one after the other."""
        keep = str(self.machine.root) + ".keep"
        shutil.copytree(self.machine.root, keep, symlinks=True)
        self.addCleanup(shutil.rmtree, keep)
        for point in itertools.count(1):
            shutil.rmtree(self.machine.root)
            shutil.copytree(keep, self.machine.root, symlinks=True)
            if not self.killed_at(point, verb, data):
                self.assertGreater(point, 20)
                return
            yield point

    def test_a_configure_killed_anywhere_leaves_whole_files_and_the_next_one_ends_it(self) -> None:
        new = {SECRET: b"two", TOKEN: b"one"}
        data = archive(*configuration(2, new, files=[plain("/etc/agent.conf", "new")]))
        for point in self.each_point("configure", data):
            with self.subTest(point):
                self.assertIn((self.machine.text(SECRET)), ("one", "two"))
                self.assertIn(self.machine.text("/etc/agent.conf"), ("old", "new"))
                self.assertEqual(self.machine.text(TOKEN), "refreshed")
                self.assert_done(self.machine.configure(3, new, files=[plain("/etc/agent.conf", "new")]))
                self.assertEqual((self.machine.text(SECRET), self.machine.text("/etc/agent.conf")), ("two", "new"))
                self.assertEqual(self.machine.text(TOKEN), "refreshed")
                self.assertEqual([*self.machine.root.rglob("*.agentfleet-*")], [])
                self.assertGreaterEqual(self.machine.voice().count("start"), 2)
                self.assertFalse(self.machine.configure(3, new, files=[plain("/etc/agent.conf", "new")])["restarted"])

    def test_after_a_configure_killed_anywhere_the_old_one_can_be_had_back(self) -> None:
        data = archive(*configuration(2, {SECRET: b"two", TOKEN: b"one"}))
        for point in self.each_point("configure", data):
            with self.subTest(point):
                self.assert_done(self.machine.configure(3, {SECRET: b"one", TOKEN: b"one"}))
                self.assertEqual((self.machine.text(SECRET), self.machine.text(TOKEN)), ("one", "refreshed"))

    def test_a_release_killed_anywhere_loses_nothing_and_starts_nothing(self) -> None:
        for point in self.each_point("release", b'{"epoch": 2}'):
            with self.subTest(point):
                if self.machine.state()["epoch"] == 2 and not self.machine.armed():
                    self.machine.system().systemctl("restart", "agent.service")
                    self.assertLessEqual(self.machine.voice().count("start"), 1)
                kept = self.assert_done(self.machine.release(2))["kept"]
                self.assertEqual({file["path"] for file in kept}, {SECRET, TOKEN})
                self.assert_done(self.machine.configure(3, {SECRET: b"one", TOKEN: b"one"}))
                self.assertEqual(self.machine.text(TOKEN), "refreshed")

    def test_a_failure_at_each_swap_puts_everything_back(self) -> None:
        real, renames = os.rename, []
        for failing in range(1, 4):
            renames.clear()

            def rename(source, target, **more):
                if str(target) in (".env", "agent.conf", "agent.json") and "-new" in str(source):
                    renames.append(target)
                    if len(renames) == failing:
                        raise OSError(5, "Input/output error")
                return real(source, target, **more)
            before = self.machine.state()
            with mock.patch.object(os, "rename", rename):
                answer = self.machine.configure(1, {SECRET: b"two", TOKEN: b"one"}, files=[plain("/etc/agent.conf", "new")])
            self.assert_refused(answer, "WriteFailed")
            self.assertEqual((self.machine.text(SECRET), self.machine.text("/etc/agent.conf")), ("one", "old"))
            self.assertEqual(self.machine.state(), before)

    def test_the_state_is_never_half(self) -> None:
        machine: Machine = self.machine
        with mock.patch.object(os, "fsync", mock.Mock(side_effect=OSError(28, "No space left on device"))):
            self.assert_refused(machine.configure(2), "DiskFull")
        self.assertEqual(machine.hello()["epoch"], 1)
        with machine_changing(machine) as state:
            state["epoch"] = 9
        self.assertEqual(machine.hello()["epoch"], 9)


def machine_changing(machine: Machine):
    return guest.Guest(machine.system()).changing()
