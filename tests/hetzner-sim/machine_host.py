#!/usr/bin/env python3
"""Hosts the guests of all fake machines of one simulator in one preloaded interpreter.

    machine_host.py --guest PATH --socket PATH

Per connection: one line of JSON `{"root", "argv", "faults"}`, then the guest's stdin until the writer
shuts down; back comes one line `{"exit", "length"}` and so many bytes of stdout. Every run is a fork of
this process, with a `FakeSystem` over the machine's scratch root. What runs is the program that stands in
that root (both parts if none does), so that a machine with the boot part alone must be upgraded first; the
two that are known beforehand are compiled once. A `hello` that waits is held here, in
the select loop, and forked only when the machine's state changed or its wait is over: hundreds of
long polls cost a `stat` each. `@power on|off` is the machine's plug, `@stats` counts the forks.
The host ends when its own stdin closes, and so dies with whoever started it.
"""
from __future__ import annotations

import argparse
import errno
import gc
import hashlib
import io
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from datetime import datetime, timezone
from types import ModuleType
from typing import Any

CUT = b"# ---- cut ----\n"
PROGRAM = "usr/local/lib/agentfleet/guest"
STATE = "var/lib/agentfleet/state.json"
TICK = 0.1  # seconds between two looks at the states that long polls wait for
CHILDREN = 16  # runs at once; the rest queue
COMMAND_TIMEOUT = 30
MODESTY = 10  # other machines would not take the processor of whoever is tested


def load_guest(source: bytes, path: str = "guest") -> ModuleType:
    """A guest program as a module."""
    module = ModuleType("guest")
    exec(compile(source, path, "exec"), module.__dict__)
    return module


def boot_part(program: bytes) -> bytes:
    """What user-data carries of the program."""
    return b"".join(program.split(CUT)[::2])


class Guests:
    """The programs that machines run, each compiled once."""

    def __init__(self, program: bytes) -> None:
        self.default, self.known = program, {text: load_guest(text) for text in (program, boot_part(program))}
        for guest in self.known.values():
            guest.run = self.telling_versions(guest.run)

    def telling_versions(self, run: Any) -> Any:
        """Runs programs, but answers at once for a guest that is known: an interpreter that starts afresh to tell its
        version costs more than all else that an upgrade does."""

        def told(argv: list[str], *arguments: Any, **options: Any) -> Any:
            if argv[0] == sys.executable and argv[-1] == "--version":
                with suppress(FileNotFoundError), open(argv[-2], "rb") as file:
                    guest = self.known.get(file.read())
                    if guest:
                        return guest.Ran(0, [guest.VERSION])
            return run(argv, *arguments, **options)

        return told

    def on(self, root: str) -> ModuleType:
        """The program of one machine."""
        try:
            with open(os.path.join(root, PROGRAM), "rb") as file:
                text = file.read()
        except FileNotFoundError:
            text = self.default
        if text not in self.known:
            self.known[text] = load_guest(text)
        return self.known[text]


def fake_system(guest: ModuleType, root: str, faults: dict[str, bool]) -> Any:
    """A `System` whose unit, journal and agent are files under `<root>/.machine/`."""

    class FakeSystem(guest.System):
        def __init__(self) -> None:
            self.root, self.skipped = root, 0.0
            self.folder = os.path.join(root, ".machine")
            os.makedirs(self.folder, exist_ok=True)

        def now(self) -> float:
            return time.monotonic() + self.skipped

        def sleep(self, seconds: float) -> None:
            self.skipped += seconds

        def write(self, fd: int, data: bytes) -> None:
            if faults.get("diskFull") and not os.readlink(f"/proc/self/fd/{fd}").startswith(root + "/run/"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().write(fd, data)

        def chown(self, fd: int, uid: int, gid: int) -> None:
            """Owners are those of the user who runs the simulator."""

        def user(self, name: str) -> tuple[int, int, str]:
            if faults.get("userMissing") and name != "root":
                raise guest.Failure("UserMissing", f"there is no user {name} on this server")
            return os.getuid(), os.getgid(), "/root" if name == "root" else f"/home/{name}"

        def run_as(self, user: str, argv: list[str], cwd: str, timeout: float, env: dict[str, str]) -> Any:
            if argv[2] in (guest.SOURCE, getattr(guest, "FORMER", ""), getattr(guest, "BACK", "")):
                return self.git(argv)
            home = root + self.user(user)[2]
            os.makedirs(home, exist_ok=True)
            base = {"HOME": home, "USER": user, "PATH": os.environ.get("PATH", "/usr/bin:/bin")}
            folder = root + cwd if cwd else home
            return guest.run(argv, min(timeout, COMMAND_TIMEOUT), cwd=folder, env=base | env)

        def git(self, argv: list[str]) -> Any:
            """A repository is a file with its commit; any ref exists."""
            head = os.path.join(root + argv[4], ".git", "HEAD")
            if argv[2] == guest.SOURCE:
                if faults.get("sourceFails"):
                    return guest.Ran(128, ["fatal: unable to access the repository"])
                os.makedirs(os.path.dirname(head), exist_ok=True)
                self.put(head, hashlib.sha1(json.dumps(argv[5:7]).encode()).hexdigest())
            elif len(argv) == 6:
                self.put(head, argv[5])
            try:
                with open(head) as file:
                    return guest.Ran(0, [file.read()])
            except FileNotFoundError:
                return guest.Ran(128, [])

        @staticmethod
        def put(path: str, content: str) -> None:
            with open(path, "w") as file:
                file.write(content)

        def apt_install(self, packages: list[str]) -> Any:
            if faults.get("packagesFail"):
                return guest.Ran(100, ["E: Unable to locate package"])
            return guest.Ran(0, [])

        def note(self, name: str, line: str) -> None:
            with open(os.path.join(self.folder, name), "a") as file:
                file.write(line + "\n")

        def units(self) -> dict[str, dict[str, Any]]:
            try:
                with open(os.path.join(self.folder, "unit.json")) as file:
                    return json.load(file)
            except FileNotFoundError:
                return {}

        def set_unit(self, name: str, **state: Any) -> None:
            units = self.units()
            units[name] = units.get(name, {"enabled": False}) | state
            path = os.path.join(self.folder, "unit.json")
            self.put(path + ".new", json.dumps(units))
            os.replace(path + ".new", path)

        def unit_state(self, name: str) -> dict[str, Any]:
            there = os.path.exists(f"{root}/etc/systemd/system/{name}")
            masked = os.path.islink(f"{root}/etc/systemd/system/{name}")
            unit = self.units().get(name, {})
            return {"load": "masked" if masked else "loaded" if there else "not-found",
                    "active": unit.get("active", "inactive"), "sub": unit.get("sub", "dead"),
                    "result": unit.get("result", "success"), "restarts": unit.get("restarts", 0),
                    "since": unit.get("since")}

        def systemctl(self, *arguments: str) -> Any:
            verb, name = arguments[0], arguments[-1]
            if verb in ("enable", "disable"):
                self.set_unit(name, enabled=verb == "enable")
            if verb in ("stop", "restart"):
                self.stop(name)
            starts = verb in ("start", "restart") or "--now" in arguments
            return self.start(name) if starts else guest.Ran(0, [])

        def reload_soon(self) -> None:
            self.systemctl("daemon-reload")

        def may_start(self, name: str) -> bool:
            """What systemd would ask the drop-in."""
            with suppress(FileNotFoundError), open(f"{root}/etc/systemd/system/{name}.d/10-agentfleet.conf") as file:
                wanted = [line.strip().partition("=")[2] for line in file if line.startswith("ConditionPathExists=")]
                return all(os.path.exists(root + path) for path in wanted) \
                    and getattr(guest.Guest(self), "is_armed", bool)()  # the boot part arms nothing
            return True

        def start(self, name: str) -> Any:
            if not self.may_start(name):
                self.set_unit(name, active="inactive", sub="dead", result="exec-condition", restarts=0)
                return guest.Ran(0, [])
            if faults.get("unitFails"):
                self.set_unit(name, active="failed", sub="failed", result="exit-code", restarts=0)
                self.note("journal", f"{name}: Failed to start")
                return guest.Ran(1, [f"Job for {name} failed"])
            since = datetime.now(timezone.utc).isoformat(timespec="seconds")
            self.set_unit(name, active="active", sub="running", result="success", restarts=0, since=since)
            self.voice("start")
            self.note("journal", f"{name}: Started")
            if faults.get("unitCrashes"):
                self.stop(name)
                self.note("journal", f"{name}: Main process exited, code=exited, status=1/FAILURE")
                self.set_unit(name, active="activating", sub="auto-restart", result="exit-code", restarts=1)
            return guest.Ran(0, [])

        def stop(self, name: str) -> None:
            if self.units().get(name, {}).get("active") == "active":
                self.voice("stop")
                self.note("journal", f"{name}: Stopped")
            self.set_unit(name, active="inactive", sub="dead", result="success", restarts=0)

        def voice(self, transition: str) -> None:
            self.note("voice.log", f"{transition} {time.time_ns() // 1_000_000}")

        def journal(self, name: str, lines: int) -> list[str]:
            try:
                with open(os.path.join(self.folder, "journal"), "rb") as file:
                    return guest.clean(file.read(), lines)
            except FileNotFoundError:
                return []

        def cgroup(self, unit: str) -> str:
            return unit

        def cgroup_pids(self, group: str) -> list[int]:
            return [1] if faults.get("stubborn") else []

        def kill(self, group: str) -> None:
            """There is no process to kill."""

        def power(self, state: str) -> None:
            """The plug: off stops every unit, on starts those that are enabled and may start."""
            for name, unit in self.units().items():
                if state == "off":
                    self.stop(name)
                elif unit["enabled"] and unit.get("active") != "active":
                    self.start(name)

    return FakeSystem()


class Call:
    """One connection: what it brought, and until when its answer may wait."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.data = connection, bytearray()
        self.root, self.argv, self.faults = "", [""], {}
        self.stdin, self.deadline, self.seen = b"", 0.0, (0, 0)

    def ready(self) -> None:
        """Everything was read: takes the header apart, and finds out whether this is a long poll."""
        line, _, self.stdin = bytes(self.data).partition(b"\n")
        header = json.loads(line)
        self.root, self.argv, self.faults = header["root"], header["argv"], header.get("faults") or {}

    def state(self) -> tuple[int, int]:
        with suppress(FileNotFoundError):
            found = os.stat(os.path.join(self.root, STATE))
            return found.st_ino, found.st_mtime_ns
        return 0, 0

    def wait_for_change(self, guests: Guests) -> bool:
        """Whether this is a hello that waits for a state it has not seen."""
        if self.argv != ["ssh", "hello"]:
            return False
        with suppress(Exception):  # whatever is wrong with it, the guest answers that itself
            request = json.loads(self.stdin)
            self.seen, guest = self.state(), guests.on(self.root)
            progress = guest.Guest(fake_system(guest, self.root, {})).progress()
            if request.get("seen") == progress and request.get("wait", 0) > 0:
                self.deadline = time.monotonic() + min(request["wait"], 25)
                return True
        return False


class Host:
    """The select loop: reads calls, holds long polls, forks the rest."""

    def __init__(self, guests: Guests, path: str) -> None:
        self.guests, self.forks = guests, 0
        self.queue: deque[Call] = deque()
        self.polls: list[Call] = []
        self.children: dict[int, str] = {}
        self.selector = selectors.DefaultSelector()
        self.listener = socket.socket(socket.AF_UNIX)
        with suppress(FileNotFoundError):
            os.unlink(path)
        self.listener.bind(path)
        self.listener.listen(2048)
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        # The end of a child wakes the loop, so that the next in the queue does not wait for a tick.
        self.ends, told = socket.socketpair()
        for end in (self.ends, told):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(told.detach(), warn_on_full_buffer=False)
        self.selector.register(self.ends, selectors.EVENT_READ)

    def serve(self) -> None:
        while True:
            for key, _ in self.selector.select(TICK if self.polls else None):
                if key.fd == sys.stdin.fileno():
                    if not os.read(key.fd, 4096):
                        return self.end()
                elif key.fileobj is self.listener:
                    self.accept()
                elif key.fileobj is self.ends:
                    self.ends.recv(4096)
                else:
                    self.read(key.data)
            self.reap()
            self.wake()
            while self.queue and len(self.children) < CHILDREN:
                self.fork(self.queue.popleft())

    def end(self) -> None:
        for child in self.children:
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)

    def accept(self) -> None:
        with suppress(BlockingIOError):
            while True:
                connection, _ = self.listener.accept()
                connection.setblocking(False)
                self.selector.register(connection, selectors.EVENT_READ, Call(connection))

    def read(self, call: Call) -> None:
        try:
            chunk = call.connection.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        call.data += chunk
        if chunk:
            return
        self.selector.unregister(call.connection)
        try:
            call.ready()
        except (ValueError, KeyError, TypeError):
            call.connection.close()
            return
        if call.argv == ["@stats"]:
            self.answer(call, 0, json.dumps({"forks": self.forks}).encode())
        elif call.argv[0] == "@power":
            self.pull(call)
        elif call.wait_for_change(self.guests):
            self.polls.append(call)
        else:
            self.queue.append(call)

    def pull(self, call: Call) -> None:
        """Whatever runs on the machine dies with its power."""
        for child, root in list(self.children.items()):
            if root == call.root:
                with suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)
        fake_system(self.guests.on(call.root), call.root, call.faults).power(call.argv[1])
        self.answer(call, 0, b"")

    def answer(self, call: Call, code: int, output: bytes) -> None:
        call.connection.setblocking(True)
        with suppress(OSError):
            call.connection.sendall(json.dumps({"exit": code, "length": len(output)}).encode() + b"\n" + output)
        call.connection.close()

    def reap(self) -> None:
        with suppress(ChildProcessError):
            while True:
                child, _ = os.waitpid(-1, os.WNOHANG)
                if not child:
                    return
                self.children.pop(child, None)

    def wake(self) -> None:
        now, held = time.monotonic(), []
        for call in self.polls:
            over = now >= call.deadline or call.state() != call.seen
            (self.queue if over else held).append(call)
        self.polls = held

    def fork(self, call: Call) -> None:
        self.forks += 1
        child = os.fork()
        if child == 0:
            try:
                self.run(call)
            finally:
                os._exit(0)
        # Both sides make its group: whoever comes first, it can be ended from here on.
        with suppress(OSError):
            os.setpgid(child, child)
        self.children[child] = call.root
        call.connection.close()

    def run(self, call: Call) -> None:
        signal.set_wakeup_fd(-1)
        os.setpgid(0, 0)
        self.let_go_of_others()
        output = io.BytesIO()
        try:
            guest = self.guests.on(call.root)
            code = guest.main(call.argv, io.BytesIO(call.stdin), output, fake_system(guest, call.root, call.faults))
        except Exception as error:
            print(f"guest {call.argv}: {error!r}", file=sys.stderr)
            code = 1
        self.answer(call, code, output.getvalue())

    def let_go_of_others(self) -> None:
        """In a child: whoever waits for the end of another call's connection must not wait for the end of this one."""
        held = [key.data for key in self.selector.get_map().values()]
        for other in (*self.polls, *self.queue, *held):
            if isinstance(other, Call):
                other.connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="hosts the guests of fake machines")
    parser.add_argument("--guest", required=True, help="the guest program's file")
    parser.add_argument("--socket", required=True, help="the unix socket to listen on")
    arguments = parser.parse_args()
    with open(arguments.guest, "rb") as file:
        host = Host(Guests(file.read()), arguments.socket)
    gc.freeze()
    os.nice(MODESTY)
    host.serve()


if __name__ == "__main__":
    main()
