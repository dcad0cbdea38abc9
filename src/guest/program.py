#!/usr/bin/python3 -I
"""The guest: the one program on an agent's server that the operator talks to.

    guest install    at boot: packages, source, files, install commands, unit; never starts the agent
    guest armed      ExecCondition of the agent's unit: may it speak on this server?
    guest ssh VERB   the operator's forced command: JSON (or a tar) in, one JSON answer out

Bottom up: Failure; shapes of requests; System (effects that a scratch root cannot stand in for);
Files (atomic, never through a link); Guest (state, install, verbs); main.

The epoch is stored before a verb acts. `configure` refuses first, then stages every file beside its
target, moves the source and runs `update`, swaps the files in, and last writes tags and armed marker
as one state. What fails before that puts former files and former commit back; what is killed is
found by `recover` in the next run. `release` disarms before it stops the unit.
Messages name fields, paths and steps, never values.
"""
from __future__ import annotations

import base64
import errno
import fcntl
import hashlib
import hmac
import io
import json
import os
import pwd
import re
import select
import signal
import stat
import subprocess
import sys
import tarfile
import time
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from typing import Any, BinaryIO, Callable, Iterator, NamedTuple

VERSION = "1.0.0"
STEP_TIMEOUT = 900  # seconds, for each command of install and update
UNIT_TIMEOUT = 100
LOCK_WAIT = 10
READ_WAIT = 60
MAX_JSON, MAX_TAR, MAX_FILES, MAX_KEPT = 64 << 10, 10 << 20, 8 << 20, 128 << 10  # bytes
TAIL, LINE = 20, 300  # lines of output kept, characters of each

VAR = "/var/lib/agentfleet/"
STATE, KEPT, LOG = VAR + "state.json", VAR + "kept/files.json", VAR + "install.log"
IDENTITY, AGENT = "/etc/agentfleet/identity.json", "/etc/agentfleet/agent.json"
ENVIRONMENT, UNITS = "/etc/agentfleet/environment", "/etc/systemd/system/"
PROGRAM = "/usr/local/lib/agentfleet/guest"
HOST_KEY = "/etc/ssh/ssh_host_ed25519_key.pub"


class Failure(Exception):
    """What is answered instead of a result."""

    def __init__(self, code: str, message: str, tail: list[str] | None = None, **more: Any) -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message, "tail": tail or []}
        self.more = more

    @classmethod
    def of(cls, error: Exception, path: str = "") -> Failure:
        if isinstance(error, Failure):
            return error
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT):
            return cls("DiskFull", f"no space left for {path}: free some on the server")
        if isinstance(error, OSError) and path:
            why = "a link or a file stands in the way: remove it" if number in (errno.ELOOP, errno.ENOTDIR) \
                else "check the server's disk and mounts" if number == errno.EROFS else "check the path"
            return cls("WriteFailed", f"{path}: {os.strerror(number or 0)}; {why}")
        at = error.__traceback__
        while at and at.tb_next:
            at = at.tb_next
        return cls("Internal", f"{type(error).__name__} at line {at.tb_lineno if at else 0}")


# Shapes: a dict (keys that end in "?" may be missing), a one-element list, (None, shape), a range,
# a pattern, bool, or a predicate.

def text(limit: int) -> re.Pattern[str]:
    return re.compile(r"[^\0]{0,%d}" % limit, re.S)


def is_path(value: Any) -> bool:
    return isinstance(value, str) and len(value) < 1024 and value.isprintable() and value[:2] != "//" \
        and value[:1] == "/" != value and os.path.normpath(value) == value


def is_environment(value: Any) -> bool:
    return isinstance(value, dict) and len(value) <= 256 and all(
        re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", key) and isinstance(value[key], str)
        and text(32768).fullmatch(value[key]) for key in value)


NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9:_.@-]{0,200}\.service")
HEX = re.compile(r"([0-9a-f]{2}){8,64}")
WORD = re.compile(r"[A-Za-z0-9._:-]{1,128}")
EPOCH, COUNT = range(1, 1 << 53), range(1 << 31)
PLACE = {"path": is_path, "mode": re.compile("0?[0-7]{3}"), "owner": NAME}
DESCRIPTION = {
    "instance": WORD, "incarnation": COUNT, "user": NAME,
    "packages": [re.compile(r"[a-z0-9][a-z0-9+.:=~-]{0,127}")],
    "source": (None, {"url": re.compile(r"[!-,.-~][!-~]{0,1023}"), "directory": is_path,
                      "ref": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+-]{0,254}")}),
    "install": [text(16384)], "update": [text(16384)],
    "files": [PLACE | {"content": text(1 << 20)}], "environment": is_environment,
    "unit": {"name": UNIT, "text": text(65536)}, "secretPaths": [is_path], "configRevision": WORD,
}
SHAPES: dict[str, dict[str, Any]] = {
    "hello": {"nonce": re.compile("[0-9a-f]{64}"), "wait?": range(26), "seen?": text(64)},
    "configure": {
        "epoch": EPOCH, "instance": WORD, "incarnation": COUNT, "resumeKey": HEX,
        "description": DESCRIPTION, "secretsTag": WORD, "settle?": range(11),
        "secretFiles": [PLACE | {"member": re.compile("files/[0-9]{1,3}"), "tag": HEX, "agentMayChange": bool}],
        "kept?": [PLACE | {"declaredTag": HEX, "content": (None, text(MAX_FILES))}]},
    "status": {"epoch": EPOCH},
    "restart": {"epoch": EPOCH, "settle?": range(11)},
    "logs": {"epoch": EPOCH, "lines": range(1, 201)},
    "probe": {"epoch": EPOCH, "command": text(16384), "timeout": range(1, 61)},
    "release": {"epoch": EPOCH},
    "upgrade": {"epoch": EPOCH, "sha256": re.compile("[0-9a-f]{64}")},
}


def refuse(message: str) -> None:
    raise Failure("BadRequest", message)


def fit(value: Any, shape: Any, where: str) -> None:
    """Refuses a value that has not this shape, naming its place."""
    if isinstance(shape, tuple):
        return None if value is None else fit(value, shape[1], where)
    if isinstance(shape, dict) and isinstance(value, dict):
        wrong = [key for key in shape if key[-1] != "?" and key not in value] + [
            key for key in value if key not in shape and key + "?" not in shape]
        if wrong:
            refuse(f"{where}: missing or unknown: {', '.join(wrong)[:LINE]}")
        for key in value:
            fit(value[key], shape.get(key, shape.get(key + "?")), f"{where}.{key}")
    elif isinstance(shape, list) and isinstance(value, list) and len(value) <= 128:
        for index, item in enumerate(value):
            fit(item, shape[0], f"{where}[{index}]")
    elif not (isinstance(shape, re.Pattern) and isinstance(value, str) and shape.fullmatch(value)
              or isinstance(shape, range) and type(value) is int and value in shape
              or shape is bool and isinstance(value, bool)
              or shape is not bool and callable(shape) and shape(value)):
        refuse(f"{where}: not as expected")


def parse(data: bytes) -> Any:
    try:
        document = json.loads(data.decode())
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
        return document
    except (ValueError, RecursionError):
        refuse("not one JSON document in UTF-8")


def dump(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, sort_keys=True).encode()


def unpack(data: bytes) -> tuple[Any, dict[str, bytes]]:
    """Request and members of a tar, of which nothing is believed."""
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for item in tar:
                left = MAX_FILES - sum(map(len, members.values()))
                if not item.isreg() or item.name in members or item.size > left or not re.fullmatch(
                        "files/[0-9]{1,3}|program" if members else "request.json", item.name):
                    refuse("tar: a member that is not expected here, or more than 8 MiB")
                content = tar.extractfile(item)
                members[item.name] = content.read(left) if content else b""
    except (tarfile.TarError, ValueError, EOFError, OverflowError):
        refuse("tar: cannot be read to its end")
    return parse(members.pop("request.json", b"")), members


def clean(output: bytes, lines: int = TAIL) -> list[str]:
    """The last lines, without control characters and of bounded length."""
    plain = re.sub("\x1b\\[[0-9;?]*[@-~]", "", output.decode(errors="replace")).replace("\t", " ")
    shown = ("".join(filter(str.isprintable, line))[:LINE] for line in re.split("[\r\n]+", plain))
    return [line for line in shown if line.strip()][-lines:]


class Ran(NamedTuple):
    """How a command ended: its exit code, None for one that was stopped."""
    code: int | None
    tail: list[str]


def run(argv: list[str], timeout: float, lines: int = TAIL, **options: Any) -> Ran:
    """Runs a command in a session of its own, and ends whatever is left of that at its end."""
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0,
                             stderr=subprocess.STDOUT, start_new_session=True, **options)
    pipe, output, deadline, done = child.stdout, b"", time.monotonic() + timeout, False
    while pipe and time.monotonic() < deadline and not done:
        done = child.poll() is not None
        while select.select([pipe], [], [], 0 if done else 0.05)[0] and time.monotonic() < deadline:
            chunk = pipe.read(65536)
            output = (output + chunk)[-(LINE * 4 * lines):]
            if not chunk:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(max(0, deadline - time.monotonic()))
                break
    code = child.poll()
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    with child:
        return Ran(code, clean(output, lines))


class System:
    """Every effect on the host that a scratch root cannot stand in for."""
    root = os.environ.get("AGENTFLEET_ROOT", "")
    now = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)

    def write(self, fd: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view):]

    def chown(self, fd: int, uid: int, gid: int) -> None:
        os.fchown(fd, uid, gid)

    def user(self, name: str) -> tuple[int, int, str]:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            raise Failure("UserMissing", f"there is no user {name} on this server: create it, or declare another") \
                from None
        return entry.pw_uid, entry.pw_gid, entry.pw_dir

    def run_as(self, user: str, argv: list[str], cwd: str, timeout: float, env: dict[str, str]) -> Ran:
        uid, gid, home = self.user(user)
        base = {"HOME": home, "USER": user, "LOGNAME": user, "LANG": "C.UTF-8", "GIT_TERMINAL_PROMPT": "0",
                "GIT_HTTP_LOW_SPEED_LIMIT": "100", "GIT_HTTP_LOW_SPEED_TIME": "30",
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        return run(argv, timeout, cwd=cwd or home, env=base | env, user=uid, group=gid, umask=0o022,
                   extra_groups=os.getgrouplist(user, gid))

    def apt_install(self, packages: list[str]) -> Ran:
        env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        names = [re.split("[=:]", name)[0] for name in packages]
        found = run(["dpkg-query", "-W", "-f", "${db:Status-Abbrev}${Package}\n", *names], 60, 999)
        if not packages or set(names) <= {line[3:] for line in found.tail if line[:2] == "ii"}:
            return Ran(0, [])
        apt = ["apt-get", "-qy", "-o", "DPkg::Lock::Timeout=600"]
        run([*apt, "update"], STEP_TIMEOUT, env=env)
        return run([*apt, "install", "--no-install-recommends", "--", *packages], STEP_TIMEOUT, env=env)

    def systemctl(self, *arguments: str) -> Ran:
        return run(["systemctl", *arguments], UNIT_TIMEOUT)

    def unit_state(self, name: str) -> dict[str, Any]:
        shown = dict(line.partition("=")[::2] for line in self.systemctl(
            "show", "--timestamp=unix", "-p",
            "LoadState,ActiveState,SubState,Result,NRestarts,ActiveEnterTimestamp", name).tail)
        since = shown.get("ActiveEnterTimestamp", "")[1:]
        return {"load": shown.get("LoadState", ""), "active": shown.get("ActiveState", ""),
                "sub": shown.get("SubState", ""), "result": shown.get("Result", ""),
                "restarts": int(shown.get("NRestarts") or 0),
                "since": datetime.fromtimestamp(int(since), timezone.utc).isoformat() if since else None}

    def journal(self, name: str, lines: int) -> list[str]:
        return run(["journalctl", "-qu", name, "-n", str(lines), "-o", "cat", "--no-pager"], 20, lines).tail

    def cgroup(self, unit: str) -> str:
        shown = self.systemctl("show", "-p", "ControlGroup", "--value", unit).tail
        return "/sys/fs/cgroup" + (shown[0] if shown else "/system.slice/" + unit)

    def cgroup_pids(self, group: str) -> list[int]:
        pids: list[int] = []
        for folder, _, _ in os.walk(group):
            with suppress(OSError), open(folder + "/cgroup.procs") as procs:
                pids += map(int, procs.read().split())
        return pids

    def kill(self, group: str) -> None:
        with suppress(OSError), open(group + "/cgroup.kill", "w") as switch:
            switch.write("1")
            return
        for pid in self.cgroup_pids(group):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class File(NamedTuple):
    """A file as it is to be; one with a tag holds a secret."""
    path: str
    mode: int
    owner: str
    content: bytes
    tag: str = ""
    may_change: bool = False


class Files:
    """The host's files: each folder on the way is opened by itself, so that no link is followed."""

    def __init__(self, system: System) -> None:
        self.system = system

    @contextmanager
    def folder(self, path: str, make: File | None = None) -> Iterator[tuple[int, str]]:
        """The open parent folder and the last name of a path; missing folders are made for `make`'s owner."""
        *parents, name = path.strip("/").split("/")
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        fd = os.open(self.system.root or "/", os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in parents:
                try:
                    inner = os.open(part, flags, dir_fd=fd)
                except FileNotFoundError:
                    if not make:
                        raise
                    os.mkdir(part, 0o700, dir_fd=fd)
                    inner = os.open(part, flags, dir_fd=fd)
                    self.system.chown(inner, *self.system.user(make.owner)[:2])
                    os.fchmod(inner, 0o755 if make.mode & 0o077 else 0o700)
                    os.fsync(fd)
                os.close(fd)
                fd = inner
            yield fd, name
        except FileNotFoundError:
            raise
        except OSError as error:
            raise Failure.of(error, path) from None
        finally:
            os.close(fd)

    def read(self, path: str) -> tuple[bytes, os.stat_result] | None:
        """Content and stat of a regular file, none if there is no file."""
        with suppress(FileNotFoundError), self.folder(path) as (fd, name):
            with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fd), "rb") as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode) or found.st_nlink > 2 or found.st_size > MAX_FILES * 2:
                    raise OSError(errno.ELOOP, "")
                return file.read(MAX_FILES * 2), found
        return None

    def same(self, file: File) -> bool:
        """Whether the file is there already, with content, mode and owner."""
        try:
            found = self.read(file.path)
        except Failure:
            return False
        return found is not None and (found[0], stat.S_IMODE(found[1].st_mode), found[1].st_uid) == (
            file.content, file.mode, self.system.user(file.owner)[0])

    def stage(self, file: File) -> None:
        """Writes the file, whole and synced, beside its target."""
        uid, gid, _ = self.system.user(file.owner)
        with self.folder(file.path, file) as (fd, name):
            with suppress(FileNotFoundError):
                os.unlink(staged(name), dir_fd=fd)
            if is_folder(fd, name):
                raise OSError(errno.EISDIR, "")
            out = os.open(staged(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=fd)
            try:
                self.system.write(out, file.content)
                self.system.chown(out, uid, gid)
                os.fchmod(out, file.mode)
                os.fsync(out)
            except OSError:
                os.unlink(staged(name), dir_fd=fd)
                raise
            finally:
                os.close(out)

    def is_staged(self, path: str) -> bool:
        with suppress(FileNotFoundError), self.folder(path) as (fd, name):
            return os.stat(staged(name), dir_fd=fd, follow_symlinks=False) is not None
        return False

    def swap(self, path: str) -> None:
        """Puts the staged file in its place, or nothing if none is staged; the former one is kept beside."""
        with suppress(FileNotFoundError), self.folder(path) as (fd, name):
            with suppress(FileNotFoundError):
                os.link(name, former(name), src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
            try:
                os.rename(staged(name), name, src_dir_fd=fd, dst_dir_fd=fd)
            except FileNotFoundError:
                os.unlink(name, dir_fd=fd)
            finally:
                os.fsync(fd)

    def restore(self, path: str) -> None:
        """Undoes `swap`."""
        with suppress(FileNotFoundError), self.folder(path) as (fd, name):
            try:
                os.rename(former(name), name, src_dir_fd=fd, dst_dir_fd=fd)
            except FileNotFoundError:
                os.unlink(name, dir_fd=fd)

    def tidy(self, path: str) -> None:
        """Removes what stands beside a file."""
        with suppress(FileNotFoundError), self.folder(path) as (fd, name):
            for left in (staged(name), former(name)):
                with suppress(FileNotFoundError):
                    os.unlink(left, dir_fd=fd)

    def write(self, file: File) -> None:
        self.stage(file)
        self.swap(file.path)
        self.tidy(file.path)

    def remove(self, path: str) -> None:
        self.tidy(path)
        self.swap(path)
        self.tidy(path)

    def document(self, path: str) -> Any:
        found = self.read(path)
        return found and json.loads(found[0])

    @contextmanager
    def locked(self, name: str, wait: float) -> Iterator[None]:
        """Holds a lock that the kernel drops with the process."""
        with self.folder(VAR + name, File("", 0o600, "root", b"")) as (fd, last):
            lock = os.open(last, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=fd)
        try:
            deadline = time.monotonic() + wait
            while True:
                with suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                if time.monotonic() >= deadline:
                    raise Failure("Busy", "another run is at work on this server: try again later")
                time.sleep(0.05)
            yield
        finally:
            os.close(lock)


def staged(name: str) -> str:
    return f".{name}.agentfleet-new"


def former(name: str) -> str:
    return f".{name}.agentfleet-old"


def is_folder(fd: int, name: str) -> bool:
    with suppress(FileNotFoundError):
        return stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
    return False


# $1 folder, $2 url, $3 ref: a branch, a tag or a commit. Prints the commit.
SOURCE = """git init -q "$1"; cd "$1"
git config remote.origin.url "$2"
git fetch -q --force --tags origin '+refs/heads/*:refs/remotes/origin/*'
git rev-parse -q --verify "refs/remotes/origin/$3" >/dev/null && set -- "$1" "$2" "refs/remotes/origin/$3"
git checkout -q --force --detach "$3"
git rev-parse HEAD"""
FORMER = 'cd "$1"; git rev-parse -q --verify HEAD'
BACK = 'cd "$1"; git checkout -q --force --detach "$2"'


def environment_file(environment: dict[str, str]) -> bytes:
    """What systemd reads back as exactly these values."""
    return "".join('%s="%s"\n' % (key, re.sub(r'(["\\`$])', r"\\\1", value))
                   for key, value in sorted(environment.items())).encode()


def drop_in(agent: dict[str, Any]) -> bytes:
    """Keeps the unit from starting unless armed (checked as root, hence the +) and given its secrets."""
    paths = "".join(f"ConditionPathExists={path.replace('%', '%%')}\n" for path in agent["secretPaths"])
    return f"[Unit]\n{paths}[Service]\nExecCondition=+{PROGRAM} armed\nEnvironmentFile={ENVIRONMENT}\n".encode()


def unit_files(agent: dict[str, Any]) -> list[File]:
    name = agent["unit"]["name"]
    return [File(ENVIRONMENT, 0o600, "root", environment_file(agent["environment"])),
            File(UNITS + name, 0o644, "root", agent["unit"]["text"].encode()),
            File(f"{UNITS}{name}.d/10-agentfleet.conf", 0o644, "root", drop_in(agent))]


def plain_files(agent: dict[str, Any]) -> list[File]:
    return [File(file["path"], int(file["mode"], 8), file["owner"], file["content"].encode())
            for file in agent["files"]]


def record(file: File) -> dict[str, Any]:
    return {"tag": file.tag, "mode": f"{file.mode:04o}", "owner": file.owner, "mayChange": file.may_change}


def source_key(agent: dict[str, Any]) -> str:
    return hashlib.sha256(dump([agent["source"], agent["update"]])).hexdigest()


class Guest:
    """State, install and verbs of one server."""

    def __init__(self, system: System) -> None:
        self.system, self.files = system, Files(system)

    # State

    def identity(self) -> dict[str, Any]:
        return self.files.document(IDENTITY) or {"fleet": "", "server": ""}

    def agent(self) -> dict[str, Any]:
        agent = self.files.document(AGENT)
        fit(agent, DESCRIPTION, "agent.json")
        return agent

    def state(self) -> dict[str, Any]:
        """The stored state; of another server's, on a disk made from its snapshot, only what still holds."""
        server = self.identity()["server"]
        own: dict[str, Any] = {"server": server, "steps": [], "armed": None, "resumeKey": "", "source": ""}
        state = {"epoch": 0, "instance": "", "everArmed": False, "applied": None, "files": {}, "pending": {},
                 "unit": "", "ref": None, "restart": True} | own | (self.files.document(STATE) or {})
        return state if state["server"] == server else state | own

    @contextmanager
    def changing(self) -> Iterator[dict[str, Any]]:
        """The state to be changed by the block, stored at its end if it differs."""
        with self.files.locked("state.lock", 60):
            state = self.state()
            before = dump(state)
            yield state
            if dump(state) != before:
                self.files.write(File(STATE, 0o600, "root", dump(state)))

    def progress(self) -> str:
        found = self.files.read(STATE)
        return hashlib.sha256(found[0] if found else b"").hexdigest()[:16]

    def claim(self, epoch: int, instance: str = "", store: bool = True) -> None:
        """Refuses a lower epoch, stores a higher one. An epoch belongs to one instance."""
        state = self.state()
        if epoch == state["epoch"] and instance in ("", state["instance"]) or epoch > state["epoch"] and not store:
            return
        with self.changing() as state:
            self.current(state, epoch)
            if epoch == state["epoch"] and instance != state["instance"]:
                raise Failure("WrongInstance", "this server serves another instance: a higher epoch takes it over")
            state |= {"epoch": epoch, "instance": instance or state["instance"]}

    def current(self, state: dict[str, Any], epoch: int) -> None:
        if epoch < state["epoch"]:
            raise Failure("StaleEpoch", "a higher epoch was seen", epoch=state["epoch"])

    def marker(self) -> dict[str, Any]:
        agent, identity = self.files.document(AGENT) or {}, self.identity()
        return {"fleet": identity["fleet"], "server": identity["server"],
                "instance": agent.get("instance"), "incarnation": agent.get("incarnation")}

    def is_armed(self) -> bool:
        return self.state()["armed"] == self.marker()

    def phase(self, state: dict[str, Any]) -> str:
        states = {step["state"] for step in state["steps"]}
        return "Pending" if not states else "Failed" if "Failed" in states else \
            "Installed" if states == {"Done"} else "Installing"

    # Install

    def install(self) -> int:
        """Goes on where it ended last; the first step that fails ends it."""
        with self.files.locked("install.lock", 0):
            agent = self.agent()
            steps = self.steps(agent)
            with self.changing() as state:
                done = [step for step in state["steps"] if step["state"] == "Done"]
                state["steps"] = done + [{"name": name, "state": "Pending", "seconds": 0, "tail": []}
                                         for name in list(steps)[len(done):]]
            return 0 if all(self.step(index, act) for index, act in enumerate(steps.values())) else 1

    def steps(self, agent: dict[str, Any]) -> dict[str, Callable[[], Any]]:
        commands = {f"install {index}": lambda command=command: self.command(agent, command, "install command")
                    for index, command in enumerate(agent["install"], 1)}
        return {"packages": lambda: self.add_packages(agent["packages"]),
                "source": lambda: self.fetch(agent), "files": lambda: self.place(plain_files(agent)),
                **commands, "unit": lambda: self.place_unit(agent)}

    def step(self, index: int, act: Callable[[], Any]) -> bool:
        with self.changing() as state:
            step = state["steps"][index]
            if step["state"] == "Done":
                return True
            step |= {"state": "Running", "tail": []}
        began = time.monotonic()
        try:
            ran = act()
            step |= {"state": "Done", "tail": (ran.tail if isinstance(ran, Ran) else [])[-3:]}
        except Exception as error:
            told = Failure.of(error, step["name"]).error
            step |= {"state": "Failed", "tail": [f"{told['code']}: {told['message']}", *told["tail"]]}
        step["seconds"] = round(time.monotonic() - began, 1)
        with self.changing() as state:
            state["steps"][index] = step
        with self.files.folder(LOG) as (fd, name):
            log = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=fd)
            with open(log, "ab") as out:
                out.write(dump(step) + b"\n")
        return step["state"] == "Done"

    def add_packages(self, packages: list[str]) -> Ran:
        return worked(self.system.apt_install(packages), "PackageFailed", "the packages") if packages else Ran(0, [])

    def folder(self, agent: dict[str, Any]) -> str:
        return agent["source"]["directory"] if agent["source"] else ""

    def shell(self, agent: dict[str, Any], script: str, *arguments: str, cwd: str = "",
              timeout: float = STEP_TIMEOUT) -> Ran:
        return self.system.run_as(agent["user"], ["sh", "-ec", script, "guest", *arguments], cwd, timeout,
                                  agent["environment"])

    def command(self, agent: dict[str, Any], command: str, what: str) -> Ran:
        return worked(self.shell(agent, command, cwd=self.folder(agent)), "CommandFailed", what)

    def fetch(self, agent: dict[str, Any]) -> Ran:
        """Brings the source to its ref, made by `git init` so that files may be there before."""
        ran, source = Ran(0, []), agent["source"]
        if source:
            with self.files.folder(source["directory"] + "/.", File("", 0o755, agent["user"], b"")):
                pass
            ran = worked(self.shell(agent, SOURCE, source["directory"], source["url"], source["ref"]),
                         "SourceFailed", "fetching the source")
        with self.changing() as state:
            state |= {"ref": ran.tail[-1] if ran.tail else None, "source": source_key(agent)}
        return ran

    def place(self, files: list[File]) -> None:
        with self.changing() as state:
            state["files"] |= {file.path: record(file) for file in files}
        for file in files:
            self.files.write(file)

    def place_unit(self, agent: dict[str, Any]) -> Ran:
        self.place(unit_files(agent))
        with self.changing() as state:
            state["unit"] = agent["unit"]["name"]
        return worked(self.system.systemctl("daemon-reload"), "UnitFailed", "systemctl daemon-reload")

    # Verbs

    def hello(self, request: dict[str, Any], members: dict[str, bytes]) -> dict[str, Any]:
        deadline = self.system.now() + request.get("wait", 0)
        while self.progress() == request.get("seen") and self.system.now() < deadline:
            self.system.sleep(0.2)
        progress, state, identity = self.progress(), self.state(), self.identity()
        key = self.files.read(HOST_KEY)
        blob = base64.b64decode(key[0].split()[1]) if key else b""
        proven = "\n".join(("agentfleet hello v1", identity["fleet"], identity["server"], request["nonce"],
                            hashlib.sha256(blob).hexdigest())).encode()
        keys = {"boot": identity.get("bootProofKey"), "resume": state["resumeKey"]}
        macs = {name: hmac.new(bytes.fromhex(key), proven, "sha256").hexdigest() for name, key in keys.items() if key}
        return {"server": identity["server"], "macs": macs if blob else {}, "progress": progress,
                "steps": state["steps"], "everArmed": state["everArmed"], **self.about(state)}

    def status(self, request: dict[str, Any], members: dict[str, bytes]) -> dict[str, Any]:
        disk = os.statvfs(self.system.root or "/")
        return {"disk": {"totalBytes": disk.f_blocks * disk.f_frsize, "freeBytes": disk.f_bavail * disk.f_frsize},
                **self.about(self.state())}

    def about(self, state: dict[str, Any]) -> dict[str, Any]:
        armed = state["armed"] and {key: state["armed"][key] for key in ("instance", "incarnation")}
        tags = {path: file["tag"] for path, file in state["files"].items() if file["tag"]}
        return {"phase": self.phase(state), "armed": armed, "epoch": state["epoch"],
                "applied": state["applied"] and {**state["applied"], "files": tags},
                "unit": self.system.unit_state(state["unit"]) if state["unit"] else None}

    def logs(self, request: dict[str, Any], members: dict[str, bytes]) -> dict[str, Any]:
        unit = self.state()["unit"]
        return {"journal": self.system.journal(unit, request["lines"]) if unit else []}

    def probe(self, request: dict[str, Any], members: dict[str, bytes]) -> dict[str, Any]:
        agent = self.agent()
        ran = self.shell(agent, request["command"], cwd=self.folder(agent), timeout=request["timeout"])
        return {"exit": -1 if ran.code is None else ran.code, "timedOut": ran.code is None, "output": ran.tail}

    def restart(self, request: dict[str, Any], members: dict[str, bytes]) -> dict[str, Any]:
        with self.files.locked("lock", LOCK_WAIT):
            if not self.is_armed():
                raise Failure("UnitFailed", "this server is not armed: configure it first")
            name = self.state()["unit"]
            return {"unit": self.bring_up(name, request), "journal": self.system.journal(name, TAIL)}

    def configure(self, request: dict[str, Any], members: dict[str, bytes]) -> dict[str, Any]:
        with self.files.locked("lock", LOCK_WAIT):
            new = request["description"]
            want = self.wanted(request, members)
            self.refuse_early(new)
            self.store_proof_key(request["resumeKey"])
            self.recover()
            old, state = self.agent(), self.state()
            self.add_packages(sorted(set(new["packages"]) - set(old["packages"])))
            change = [file for file in want if self.differs(file, state)]
            gone = sorted(set(state["files"]) - {file.path for file in want})
            with self.staged(change), self.updated(new) as moved, self.swapped(request, change, gone):
                self.arm(request, want)
            changed = [file.path for file in change if file.path != AGENT] + gone
            return {"changed": changed, **self.speak(request, state, bool(changed or moved))}

    def refuse_early(self, agent: dict[str, Any]) -> None:
        """What must not be found out when half is done."""
        if self.phase(self.state()) != "Installed":
            raise Failure("NotInstalled", "the install has not ended well: ask hello for its steps")
        self.system.user(agent["user"])
        name = agent["unit"]["name"]
        if self.system.unit_state(name)["load"] == "masked":
            raise Failure("UnitFailed", f"{name} is masked: run systemctl unmask {name} on the server")

    def store_proof_key(self, key: str) -> None:
        with self.changing() as state:
            state["resumeKey"] = key
        identity = self.identity()
        if identity.pop("bootProofKey", None):
            self.files.write(File(IDENTITY, 0o600, "root", dump(identity)))

    def wanted(self, request: dict[str, Any], members: dict[str, bytes]) -> list[File]:
        """All files as they are to be; what the agent had changed comes from where it was put away."""
        agent, files = request["description"], plain_files(request["description"])
        kept = {(file["path"], file["declaredTag"]): base64.b64decode(file["content"])
                for file in self.kept() + request.get("kept", []) if file["content"] is not None}
        for file in request["secretFiles"]:
            if file["member"] not in members:
                refuse(f"tar: {file['member']} is missing")
            content = members[file["member"]]
            if file["agentMayChange"]:
                content = kept.get((file["path"], file["tag"]), content)
            files.append(File(file["path"], int(file["mode"], 8), file["owner"], content, file["tag"],
                              file["agentMayChange"]))
        files += [*unit_files(agent), File(AGENT, 0o600, "root", dump(agent))]
        if len({file.path for file in files}) < len(files):
            refuse("a path is declared twice")
        if any(agent[key] != request[key] for key in ("instance", "incarnation")):
            refuse("description: of another instance or incarnation")
        return files

    def kept(self) -> list[dict[str, Any]]:
        return self.files.document(KEPT) or []

    def differs(self, file: File, state: dict[str, Any]) -> bool:
        if file.may_change and state["files"].get(file.path, {}).get("tag") == file.tag:
            with suppress(Failure):
                return self.files.read(file.path) is None
        return not self.files.same(file)

    def recover(self) -> None:
        """Ends what a killed run left: a pending file that is no longer staged is in its place."""
        with self.changing() as state:
            paths = {*state["pending"], *state["files"]}
            for path, file in state["pending"].items():
                if not self.files.is_staged(path):
                    state["files"][path] = file
            state["pending"] = {}
        for path in paths:
            self.files.tidy(path)

    @contextmanager
    def staged(self, files: list[File]) -> Iterator[None]:
        """Every file lies whole beside its target before the first one is touched."""
        try:
            for file in files:
                self.files.stage(file)
            yield
        finally:
            for file in files:
                self.files.tidy(file.path)

    @contextmanager
    def updated(self, agent: dict[str, Any]) -> Iterator[bool]:
        """The block runs on the new source; if that or the block fails, the former commit comes back."""
        before = self.state()
        if before["source"] == source_key(agent):
            yield False
            return
        folder = self.folder(agent)
        head = self.shell(agent, FORMER, folder).tail if folder else []
        with self.changing() as state:
            state["source"] = ""
        try:
            self.fetch(agent)
            with self.changing() as state:
                state["source"] = ""
            for index, command in enumerate(agent["update"], 1):
                self.command(agent, command, f"update command {index}")
            yield True
        except Exception:
            if head:
                self.shell(agent, BACK, folder, head[-1])
            with self.changing() as state:
                state |= {"source": "", "ref": before["ref"]}
            raise
        with self.changing() as state:
            state["source"] = source_key(agent)

    @contextmanager
    def swapped(self, request: dict[str, Any], files: list[File], gone: list[str]) -> Iterator[None]:
        """Puts staged files in and undeclared ones out; back again if that or the block fails."""
        with self.changing() as state:
            self.current(state, request["epoch"])
            state |= {"pending": {file.path: record(file) for file in files}, "restart": True}
        done: list[str] = []
        try:
            for path in [file.path for file in files] + gone:
                done.append(path)
                self.files.swap(path)
            yield
        except Exception:
            for path in done:
                self.files.restore(path)
            with self.changing() as state:
                state["pending"] = {}
            raise
        for path in gone:
            self.files.tidy(path)

    def arm(self, request: dict[str, Any], files: list[File]) -> None:
        with self.changing() as state:
            self.current(state, request["epoch"])
            state |= {"armed": self.marker(), "everArmed": True, "pending": {},
                      "files": {file.path: record(file) for file in files},
                      "applied": {"configRevision": request["description"]["configRevision"],
                                  "secretsTag": request["secretsTag"]}}

    def speak(self, request: dict[str, Any], before: dict[str, Any], changed: bool) -> dict[str, Any]:
        """Starts the unit if anything that it sees has changed, or if it does not run."""
        name = request["description"]["unit"]["name"]
        if before["unit"] != name and before["unit"]:
            self.silence(before["unit"])
        self.files.remove(KEPT)
        with self.changing() as state:
            state["unit"] = name
        unit = self.system.unit_state(name)
        restart = changed or before["restart"] or unit["active"] != "active"
        if restart:
            unit = self.bring_up(name, request)
        state = self.state()
        return {"armed": True, "epoch": state["epoch"], **state["applied"], "restarted": restart,
                "ref": state["ref"], "unit": unit, "journal": self.system.journal(name, TAIL)}

    def bring_up(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """Starts the unit afresh and sees that it stays up."""
        self.system.systemctl("reset-failed", name)
        for arguments in (["daemon-reload"], ["enable", name], ["restart", name]):
            ran = self.system.systemctl(*arguments)
            if ran.code != 0:
                raise self.unit_failed(name, f"systemctl {arguments[0]} failed", ran.tail)
        unit = self.system.unit_state(name)
        restarts, until = unit["restarts"], self.system.now() + request.get("settle", 2)
        while unit["active"] == "active" and unit["restarts"] == restarts:
            if self.system.now() >= until:
                with self.changing() as state:
                    state["restart"] = False
                return unit
            self.system.sleep(0.1)
            unit = self.system.unit_state(name)
        raise self.unit_failed(name, f"did not stay up: {unit['active']}, {unit['sub']}, {unit['result']}", [])

    def unit_failed(self, name: str, why: str, tail: list[str]) -> Failure:
        return Failure("UnitFailed", f"{name}: {why}", (tail + self.system.journal(name, TAIL))[-TAIL:])

    def silence(self, name: str) -> None:
        """Stops the unit and proves that no process of it is left."""
        group = self.system.cgroup(name)
        self.system.systemctl("disable", name)
        self.system.systemctl("stop", name)
        deadline = self.system.now() + 15
        while self.system.cgroup_pids(group) or self.system.unit_state(name)["active"] not in ("inactive", "failed"):
            if self.system.now() >= deadline:
                raise Failure("StillRunning", f"{name}: processes are left after SIGKILL: look at its cgroup")
            self.system.kill(group)
            self.system.sleep(0.1)

    def release(self, request: dict[str, Any], members: dict[str, bytes]) -> dict[str, Any]:
        with self.files.locked("lock", LOCK_WAIT):
            with self.changing() as state:
                state |= {"armed": None, "restart": True}
            self.recover()
            state = self.state()
            if state["unit"]:
                self.silence(state["unit"])
            kept = self.put_away({path: file for path, file in state["files"].items() if file["tag"]})
            with self.changing() as state:
                state["files"] = {path: file for path, file in state["files"].items() if not file["tag"]}
                state["applied"] = None
            os.sync()
            return {"released": True, "kept": kept}

    def put_away(self, secrets: dict[str, Any]) -> list[dict[str, Any]]:
        """Stores what the agent may have changed where only root reads, then deletes all secret files."""
        kept = {file["path"]: file for file in self.kept()}
        for path, file in secrets.items():
            with suppress(Failure):
                found = self.files.read(path) if file["mayChange"] else None
                if found:
                    kept[path] = {"path": path, "mode": file["mode"], "owner": file["owner"],
                                  "declaredTag": file["tag"], "content": base64.b64encode(found[0]).decode()}
        self.files.write(File(KEPT, 0o600, "root", dump(list(kept.values()))))
        for path in secrets:
            self.files.remove(path)
        left, answer = MAX_KEPT, []
        for file in kept.values():
            left -= len(file["content"])
            answer.append(file if left >= 0 else {**file, "content": None})
        return answer

    def upgrade(self, request: dict[str, Any], members: dict[str, bytes]) -> dict[str, Any]:
        program, trial = members.get("program", b""), PROGRAM + ".new"
        if hashlib.sha256(program).hexdigest() != request["sha256"]:
            raise Failure("UpgradeRefused", "the program is not the one announced")
        with self.files.locked("lock", LOCK_WAIT):
            self.files.write(File(trial, 0o755, "root", program))
            ran = run([sys.executable, "-I", self.system.root + trial, "--version"], 20)
            self.files.remove(trial)
            if ran.code != 0 or not ran.tail:
                raise Failure("UpgradeRefused", "the program does not run here", ran.tail)
            last = self.files.read(PROGRAM)
            if last and last[0] != program:
                self.files.write(File(PROGRAM + ".previous", 0o755, "root", last[0]))
            self.files.write(File(PROGRAM, 0o755, "root", program))
        return {"upgraded": True}

    def serve(self, verb: str, stdin: BinaryIO) -> dict[str, Any]:
        if verb not in SHAPES:
            raise Failure("BadCommand", "one of: " + ", ".join(SHAPES))
        tarred = verb in ("configure", "upgrade")
        limit = MAX_TAR if tarred else MAX_JSON
        signal.alarm(READ_WAIT)
        data = stdin.read(limit + 1)
        signal.alarm(0)
        if len(data) > limit:
            refuse(f"more than {limit} bytes")
        request, members = unpack(data) if tarred else (parse(data), {})
        fit(request, SHAPES[verb], verb)
        if verb != "hello":
            self.claim(request["epoch"], request.get("instance", ""), verb not in ("status", "logs", "probe"))
        return getattr(self, verb)(request, members)


def worked(ran: Ran, code: str, what: str) -> Ran:
    if ran.code != 0:
        how = f"ended with {ran.code}" if ran.code is not None else "did not end in time and was stopped"
        raise Failure(code, f"{what} {how}", ran.tail)
    return ran


def main(argv: list[str], stdin: BinaryIO, stdout: BinaryIO, system: System) -> int:
    os.umask(0o077)
    guest = Guest(system)
    if argv == ["--version"]:
        return 0 if stdout.write(VERSION.encode() + b"\n") else 1
    if argv == ["install"]:
        return guest.install()
    if argv == ["armed"]:
        return 0 if guest.is_armed() else 1
    verb = argv[1].strip() if len(argv) == 2 and argv[0] == "ssh" else ""
    answer: dict[str, Any] = {"protocol": 1, "guest": VERSION, "ok": True}
    try:
        answer |= guest.serve(verb, stdin)
    except Exception as error:
        failure = Failure.of(error)
        answer |= {"ok": False, "error": failure.error, **failure.more}
    with suppress(BrokenPipeError):
        stdout.write(dump(answer) + b"\n")
        stdout.flush()
    return 0 if verb in SHAPES else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdin.buffer, sys.stdout.buffer, System()))
