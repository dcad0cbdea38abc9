"""The program as a file, and the real System as far as any host can show it."""
from __future__ import annotations

import gzip
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from machine import BOOT, PROGRAM, ROOT, boot_guest, guest

FILE = ROOT / "src" / "guest" / "program.py"


class Program(unittest.TestCase):
    def test_the_boot_part_fits_into_user_data(self) -> None:
        self.assertLessEqual(len(BOOT), 28 << 10)
        self.assertLessEqual(len(gzip.compress(BOOT, 9, mtime=0)), 7680)

    def test_the_whole_program_fits_into_an_upgrade(self) -> None:
        self.assertLessEqual(len(PROGRAM), 64 << 10)

    def test_both_compile_without_a_warning(self) -> None:
        for text in (BOOT, PROGRAM):
            check = subprocess.run([sys.executable, "-W", "error", "-I", "-", "--version"], input=text, capture_output=True)
            self.assertEqual((check.returncode, check.stderr), (0, b""))

    def test_each_part_tells_its_own_version(self) -> None:
        self.assertEqual(boot_guest.VERSION, guest.VERSION + "-boot")

    def test_it_runs_as_a_program(self) -> None:
        root = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, root)
        env = {"AGENTFLEET_ROOT": root, "PATH": os.environ["PATH"]}
        may_speak = [sys.executable, "-W", "error", "-IS", "-c", guest.MAY_SPEAK]
        self.assertEqual(subprocess.run(may_speak, capture_output=True).returncode, 1)
        hello = subprocess.run([sys.executable, "-I", str(FILE), "ssh", "hello"], env=env, input=b"{}", capture_output=True)
        self.assertIn(b'"code": "BadRequest"', hello.stdout)

    def test_only_the_standard_library_is_used(self) -> None:
        names = {line.split()[1] for line in PROGRAM.decode().splitlines() if line.startswith(("import ", "from "))}
        self.assertLessEqual(names, sys.stdlib_module_names)


class Commands(unittest.TestCase):
    def test_a_command_gives_its_code_and_last_lines(self) -> None:
        self.assertEqual(guest.run(["sh", "-c", "echo out; echo err >&2; exit 4"], 10), (4, ["out", "err"]))

    def test_a_command_that_hangs_is_stopped_with_its_children(self) -> None:
        mark = f"sleep {100_000_000 + os.getpid()}"
        ran = guest.run(["sh", "-c", f"{mark} & echo here; {mark}"], 0.5)
        self.assertEqual(ran, (None, ["here"]))
        self.assertEqual(subprocess.run(["pgrep", "-f", f"^{mark}$"], capture_output=True).stdout, b"")

    def test_a_command_that_leaves_a_child_with_its_output_does_not_hang(self) -> None:
        self.assertEqual(guest.run(["sh", "-c", "sleep 98764 & echo done"], 60), (0, ["done"]))

    def test_a_command_that_closes_its_output_is_waited_for(self) -> None:
        self.assertEqual(guest.run(["sh", "-c", "exec >&- 2>&-; sleep 0.2; exit 5"], 10), (5, []))

    def test_endless_output_is_bounded_and_ends_in_time(self) -> None:
        ran = guest.run(["yes", "x" * 1000], 0.5)
        self.assertEqual((ran.code, {len(line) for line in ran.tail[1:]}), (None, {300}))
        self.assertLessEqual(len(ran.tail), 20)

    def test_a_command_runs_as_the_user_and_in_its_home(self) -> None:
        system = guest.System()
        name = pwd.getpwuid(os.getuid()).pw_name
        ran = system.run_as(name, ["sh", "-c", 'echo "$USER $LEVEL"; pwd'], "", 10, {"LEVEL": "info"})
        self.assertEqual(ran.tail, [f"{name} info", system.user(name)[2]])

    def test_an_unknown_user_is_named(self) -> None:
        with self.assertRaises(guest.Failure) as refused:
            guest.System().user("no-such-user")
        self.assertEqual(refused.exception.error["code"], "UserMissing")

    @unittest.skipUnless(os.getuid() == 0, "another user needs root")
    def test_a_command_of_another_user_has_none_of_roots_rights(self) -> None:
        ran = guest.System().run_as("nobody", ["sh", "-c", "id -u; id -G; cat /etc/shadow"], "/", 10, {})
        uid, gid = guest.System().user("nobody")[:2]
        self.assertEqual(ran.tail[:2], [str(uid), str(gid)])
        self.assertIn("ermission denied", ran.tail[2])


class Units(unittest.TestCase):
    SHOWN = ["LoadState=loaded", "ActiveState=active", "SubState=running", "Result=success", "NRestarts=2",
             "ActiveEnterTimestamp=@1700000000"]

    def test_the_unit_is_read_from_systemctl_show(self) -> None:
        with mock.patch.object(guest, "run", return_value=guest.Ran(0, self.SHOWN)):
            self.assertEqual(guest.System().unit_state("agent.service"), {
                "load": "loaded", "active": "active", "sub": "running", "result": "success", "restarts": 2,
                "since": "2023-11-14T22:13:20Z"})

    def test_a_unit_that_never_ran_has_no_since(self) -> None:
        with mock.patch.object(guest, "run", return_value=guest.Ran(0, ["ActiveEnterTimestamp=", "NRestarts="])):
            self.assertEqual((guest.System().unit_state("x")["since"], guest.System().unit_state("x")["restarts"]), (None, 0))

    def test_every_process_below_a_cgroup_is_killed(self) -> None:
        group = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, group)
        (group / "inner").mkdir()
        sleepers = [subprocess.Popen(["sleep", "98763"]) for _ in range(2)]
        (group / "cgroup.procs").write_text(f"{sleepers[0].pid}\n")
        (group / "inner" / "cgroup.procs").write_text(f"{sleepers[1].pid}\n")
        guest.System().kill(str(group))
        self.assertEqual([sleeper.wait(10) for sleeper in sleepers], [-9, -9])


class Repository(unittest.TestCase):
    """SOURCE, FORMER and BACK with a real git."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.origin, self.work = self.folder / "origin", self.folder / "work"
        self.origin.mkdir()
        self.git("init", "-q", "-b", "main", ".")
        self.first = self.commit("one")
        self.git("tag", "v1")

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        return subprocess.run(["git", *identity, *arguments], cwd=self.origin, check=True, capture_output=True,
                              text=True).stdout.strip()

    def commit(self, content: str) -> str:
        (self.origin / "file").write_text(content)
        self.git("add", "file")
        self.git("commit", "-qm", content)
        return self.git("rev-parse", "HEAD")

    def fetch(self, ref: str) -> guest.Ran:
        self.work.mkdir(exist_ok=True)
        return guest.run(["sh", "-ec", guest.SOURCE, "sh", str(self.work), str(self.origin), ref], 60)

    def test_a_branch_a_tag_and_a_commit_are_found(self) -> None:
        second = self.commit("two")
        for ref, commit in (("main", second), ("v1", self.first), (second, second), ("main", second)):
            ran = self.fetch(ref)
            self.assertEqual((ran.code, ran.tail[-1]), (0, commit), ran)

    def test_a_moved_branch_and_a_moved_tag_are_followed(self) -> None:
        self.fetch("main")
        self.git("checkout", "-q", "--orphan", "other")
        moved = self.commit("rewritten")
        self.git("branch", "-qf", "main", moved)
        self.git("tag", "-f", "v1", moved)
        self.assertEqual((self.fetch("main").tail[-1], self.fetch("v1").tail[-1]), (moved, moved))

    def test_files_that_were_there_before_stay(self) -> None:
        self.work.mkdir()
        (self.work / ".env").write_text("secret")
        self.assertEqual(self.fetch("main").code, 0)
        self.assertEqual((self.work / ".env").read_text(), "secret")

    def test_a_missing_ref_and_a_missing_repository_fail_with_gits_words(self) -> None:
        ran = self.fetch("no-such-ref")
        self.assertNotEqual(ran.code, 0)
        self.assertTrue(ran.tail)
        self.origin.rename(self.folder / "gone")
        self.assertNotEqual(self.fetch("main").code, 0)

    def test_the_former_commit_can_be_had_back(self) -> None:
        self.fetch("main")
        former = guest.run(["sh", "-ec", guest.FORMER, "sh", str(self.work)], 10).tail[-1]
        self.commit("two")
        self.fetch("main")
        guest.run(["sh", "-ec", guest.BACK, "sh", str(self.work), former], 10)
        self.assertEqual((self.work / "file").read_text(), "one")
