#!/usr/bin/python3 -IS
"""The guest: the one program on an agent's server that the operator talks to.

    guest install    at boot: packages, source, files, install commands; never starts the agent
    guest ssh VERB   the operator's forced command: JSON (or a tar) in, one JSON answer out

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
from typing import Any, BinaryIO, Callable, Iterator, NamedTuple

VERSION = "1.0.0-boot"
STEP_TIMEOUT = 900  # seconds, for each command of install and update
LOCK_WAIT = 10
MAX_JSON, MAX_TAR, MAX_FILES = 64 << 10, 10 << 20, 8 << 20  # bytes
TAIL, LINE = 20, 300  # lines of output kept, characters of each

VAR, ETC, UNITS = "/var/lib/agentfleet/", "/etc/agentfleet/", "/etc/systemd/system/"
STATE, IDENTITY, AGENT = VAR + "state.json", ETC + "identity.json", ETC + "agent.json"
NOTE = "/run/agentfleet.json"  # in memory: why the state could not be stored
PROGRAM = "/usr/local/lib/agentfleet/guest"
HOST_KEY = "/etc/ssh/ssh_host_ed25519_key.pub"


class Failure(Exception):
    """What is answered instead of a result."""

    def __init__(self, code: str, message: str, tail: list[str] | None = None, **more: Any) -> None:
        self.error, self.more = {"code": code, "message": message, "tail": tail or []}, more

    @classmethod
    def of(cls, error: BaseException, path: str = "") -> Failure:
        if isinstance(error, Failure):
            return error
        if isinstance(error, OSError):
            number, path = error.errno or 0, path or error.filename
            if number in (errno.ENOSPC, errno.EDQUOT):
                return cls("DiskFull", f"{path}: no space left, free some")
            hint = "remove the link in its way" if number in (errno.ELOOP, errno.ENOTDIR) else "check path and disk"
            return cls("WriteFailed", f"{path}: {os.strerror(number)}: {hint}")
        return cls("Internal", f"an error in the guest: {type(error).__name__}")


def failed(error: Exception) -> dict[str, Any]:
    told = Failure.of(error).error
    return {"state": "Failed", "tail": [f"{told['code']}: {told['message']}", *told["tail"]]}


EPOCH, SHA256 = range(1, 1 << 53), re.compile("[0-9a-f]{64}")
SHAPES: dict[str, Any] = {
    "hello": {"nonce": SHA256, "wait?": range(26), "seen?": re.compile("[0-9a-f]{0,64}")},
    "upgrade": {"epoch": EPOCH, "sha256": SHA256},
}


def bad(message: str) -> Failure:
    return Failure("BadRequest", message)


def fit(value: Any, shape: Any, where: str) -> None:
    """Refuses a value that has not this shape, naming its place."""
    if isinstance(shape, dict) and isinstance(value, dict):
        for key in value.keys() | {key for key in shape if key[-1] != "?"}:
            inner = shape.get(key, shape.get(key + "?"))
            if inner is None or key not in value:
                raise bad(f"{where}: {key[:LINE]}: missing or unknown")
            fit(value[key], inner, f"{where}.{key}")
    elif not (isinstance(shape, re.Pattern) and isinstance(value, str) and shape.fullmatch(value)
              or isinstance(shape, range) and type(value) is int and value in shape
              or callable(shape) and shape(value, where)):
        raise bad(where + " is wrong")


def parse(data: bytes) -> Any:
    try:
        document = json.loads(data)
        dump(document)
        return document
    except (ValueError, RecursionError):
        raise bad("not one JSON document") from None


def dump(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, allow_nan=False, sort_keys=True).encode()


def unpack(data: bytes) -> tuple[Any, dict[str, bytes]]:
    """Request and members of a tar, of which nothing is believed."""
    members: dict[str, bytes] = {}
    left = MAX_FILES
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for item in tar:
                name = "files/[0-9]{1,3}|program" if members else "request.json"
                left -= item.size
                if left < 0 or not item.isreg() or item.name in members or not re.fullmatch(name, item.name):
                    raise bad("tar: an unexpected member, or more than 8 MiB")
                members[item.name] = tar.extractfile(item).read()
    except (tarfile.TarError, ValueError, EOFError):
        raise bad("tar: cannot be read") from None
    return parse(members.pop("request.json", b"")), members


def clean(output: bytes, lines: int = TAIL) -> list[str]:
    """The last lines, bounded, without control characters."""
    plain = re.sub("\x1b\\[[0-9;?]*[@-~]", "", output.decode(errors="replace")).replace("\t", " ")
    shown = ("".join(filter(str.isprintable, line))[:LINE] for line in re.split("[\r\n]", plain))
    return [line for line in shown if line.strip()][-lines:]


class Ran(NamedTuple):
    """How a command ended: its exit code (none: it was stopped) and last lines."""
    code: int | None
    tail: list[str]


def run(argv: list[str], timeout: float, lines: int = TAIL, **options: Any) -> Ran:
    """Runs a command in a session of its own, of which nothing is left at its end."""
    output, deadline = b"", time.monotonic() + timeout
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          start_new_session=True, **options) as child:
        pipe, code, pause = child.stdout.fileno(), None, 0.001
        while code is None and time.monotonic() < deadline:
            code = child.poll()
            while select.select([pipe], [], [], 0 if code is not None else 0.05)[0] and time.monotonic() < deadline:
                chunk = os.read(pipe, 65536)
                output = (output + chunk)[-LINE * 4 * lines:]
                if not chunk:  # it ends now, or goes on in silence
                    time.sleep(pause)
                    pause = min(2 * pause, 0.05)
                    break
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    return Ran(code, clean(output, lines))


def worked(ran: Ran, code: str, what: str) -> Ran:
    if ran.code != 0:
        raise Failure(code, f"{what} " + ("did not end in time" if ran.code is None else f"ended with {ran.code}"),
                      ran.tail)
    return ran


APT = """set -- apt-get -qy -o DPkg::Lock::Timeout=600 install --no-install-recommends -- "$@"
"$@" || { apt-get -qy update; "$@"; }"""
# $1 folder, $2 url, $3 branch, tag or commit. `init`, as files may be there before.
SOURCE = """git init -q "$1"; cd "$1"; git config remote.origin.url "$2"
git -c http.lowSpeedLimit=99 -c http.lowSpeedTime=60 fetch -qft origin '+refs/heads/*:refs/remotes/origin/*'
git checkout -q --force --detach "$(git rev-parse -q --verify "refs/remotes/origin/$3" || echo "$3")"
git rev-parse HEAD"""


class System:
    """What a scratch root cannot stand in for."""
    root = os.environ.get("AGENTFLEET_ROOT", "")
    now = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)

    def write(self, fd: int, data: bytes) -> None:
        while data:
            data = data[os.write(fd, data):]

    def chown(self, fd: int, uid: int, gid: int) -> None:
        os.fchown(fd, uid, gid)

    def user(self, name: str) -> tuple[int, int, str]:
        """Uid, gid and home."""
        try:
            _, _, uid, gid, _, home, _ = pwd.getpwnam(name)
            return uid, gid, home
        except KeyError:
            raise Failure("UserMissing", f"no user {name} on this server: create it or declare another") from None

    def run_as(self, user: str, argv: list[str], cwd: str, timeout: float, env: dict[str, str]) -> Ran:
        uid, gid, home = self.user(user)
        base = {"HOME": home, "USER": user, "LANG": "C.UTF-8",
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        return run(argv, timeout, cwd=cwd or home, env=base | env, user=uid, group=gid, umask=0o022,
                   extra_groups=os.getgrouplist(user, gid))

    def apt_install(self, packages: list[str]) -> Ran:
        return run(["sh", "-c", APT, "sh", *packages], STEP_TIMEOUT,
                   env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})


class File(NamedTuple):
    """A file as it is to be; one with a tag holds a secret."""
    path: str
    mode: int
    owner: str
    content: bytes
    tag: str = ""
    may_change: bool = False


def private(path: str, content: bytes = b"") -> File:
    return File(path, 0o600, "root", content)


def staged(name: str) -> str:
    return f".{name}.agentfleet-new"


class Files:
    """The host's files, reached folder by folder so that no planted link is followed."""

    def __init__(self, system: System) -> None:
        self.system = system

    @contextmanager
    def folder(self, path: str, make: File | None = None) -> Iterator[tuple[int, str]]:
        """The open parent folder and last name of a path; missing folders are made for `make`'s owner."""
        *parents, name = path.strip("/").split("/")
        flags = os.O_DIRECTORY | os.O_NOFOLLOW
        fd = os.open(self.system.root or "/", flags)
        try:
            for part in parents:
                try:
                    inner = os.open(part, flags, dir_fd=fd)
                except FileNotFoundError:
                    if not make:
                        raise
                    with suppress(FileExistsError):  # another run makes it in this moment
                        os.mkdir(part, dir_fd=fd)
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
        """Content and stat of a regular file, if there is one."""
        with suppress(FileNotFoundError), self.folder(path) as (fd, name):
            with open(os.open(name, os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fd), "rb") as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode) or found.st_size > 2 * MAX_FILES:
                    raise OSError(errno.ELOOP, "")
                return file.read(), found
        return None

    def document(self, path: str) -> Any:
        found = self.read(path)
        return found and json.loads(found[0])

    def stage(self, file: File) -> None:
        """Writes the file, whole and synced, beside its target."""
        uid, gid, _ = self.system.user(file.owner)
        with self.folder(file.path, file) as (fd, name):
            with suppress(FileNotFoundError):
                os.unlink(staged(name), dir_fd=fd)
            out = os.open(staged(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=fd)
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

    def write(self, file: File) -> None:
        self.stage(file)
        with self.folder(file.path) as (fd, name):
            os.rename(staged(name), name, src_dir_fd=fd, dst_dir_fd=fd)
            os.fsync(fd)

    @contextmanager
    def locked(self, path: str, wait: float) -> Iterator[None]:
        """Holds a lock that the kernel drops with the process."""
        with self.folder(path, private("")) as (fd, name):
            lock = os.open(name, os.O_RDWR | os.O_CREAT, 0o600, dir_fd=fd)
        with open(lock):
            for left in range(int(wait * 20), -1, -1):
                with suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                if not left:
                    raise Failure("Busy", "another run is at work: try again later")
                time.sleep(0.05)
            yield


def plain_files(agent: dict[str, Any]) -> list[File]:
    return [File(file["path"], int(file["mode"], 8), file["owner"], file["content"].encode())
            for file in agent["files"]]


class Guest:
    """State, install and verbs of one server."""

    def __init__(self, system: System) -> None:
        self.system, self.files = system, Files(system)

    def identity(self) -> dict[str, Any]:
        return self.files.document(IDENTITY) or {"fleet": "", "server": ""}

    def state(self) -> dict[str, Any]:
        """The stored state; on a disk from another server's snapshot, what of it still holds."""
        own = {"server": self.identity()["server"], "steps": [], "armed": None, "resumeKey": ""}
        state = {"epoch": 0, "everArmed": False, "source": None} | own | (self.files.document(STATE) or {})
        return state if state["server"] == own["server"] else state | own

    @contextmanager
    def changing(self) -> Iterator[dict[str, Any]]:
        """The state, to be changed by the block and stored at its end."""
        with self.files.locked(VAR + "state.lock", 60):
            state = self.state()
            before = dump(state)
            yield state
            if dump(state) != before:
                self.files.write(private(STATE, dump(state)))

    def progress(self) -> str:
        found = self.files.read(STATE)
        return hashlib.sha256(found[0] if found else b"").hexdigest()[:16]

    def claim(self, request: dict[str, Any], state: dict[str, Any]) -> None:
        """Stores the request's epoch, refuses a lower one."""
        if request["epoch"] < state["epoch"]:
            raise Failure("StaleEpoch", "a higher epoch was seen", epoch=state["epoch"])
        state["epoch"] = request["epoch"]

    def install(self) -> bool:
        """Goes on where it ended last; the first step that fails ends it. What else fails is told like a step."""
        with self.files.locked("/run/agentfleet.lock", 0):
            note = []
            try:
                return self.go_on(self.steps(self.files.document(AGENT)))
            except Exception as error:
                note = [{"name": "guest"} | failed(error)]
                return False
            finally:
                self.files.write(private(NOTE, dump(note)))

    def go_on(self, steps: dict[str, Callable[[], Any]]) -> bool:
        with self.changing() as state:
            done = [step for step in state["steps"] if step["state"] == "Done"]
            state["steps"] = done + [{"name": name, "state": "Pending", "seconds": 0, "tail": []}
                                     for name in list(steps)[len(done):]]
        return all(self.step(index, act) for index, act in enumerate(steps.values()) if index >= len(done))

    def steps(self, agent: dict[str, Any]) -> dict[str, Callable[[], Any]]:
        if self.state()["source"]:  # restored
            agent |= {"source": None, "install": []}
        commands = {f"install {index}": lambda command=command: self.command(agent, command, "the command")
                    for index, command in enumerate(agent["install"], 1)}
        return {"packages": lambda: self.add_packages(agent["packages"]), "source": lambda: self.fetch(agent),
                "files": lambda: self.place(agent), **commands}

    def step(self, index: int, act: Callable[[], Any]) -> bool:
        with self.changing() as state:
            step = state["steps"][index]
            step |= {"state": "Running"}
        began = time.monotonic()
        try:
            ran = act()
            step |= {"state": "Done", "tail": ran.tail[-3:] if ran else []}
        except Exception as error:
            step |= failed(error)
        step["seconds"] = round(time.monotonic() - began, 1)
        with self.changing() as state:
            state["steps"][index] = step
        self.log("install.log", step)
        return step["state"] == "Done"

    def log(self, name: str, step: dict[str, Any]) -> None:
        with suppress(OSError), open(self.system.root + VAR + name, "ab") as log:
            log.write(dump(step) + b"\n")

    def add_packages(self, packages: list[str]) -> Ran | None:
        return worked(self.system.apt_install(packages), "PackageFailed", "apt-get") if packages else None

    def shell(self, agent: dict[str, Any], script: str, *arguments: str, cwd: str = "",
              timeout: float = STEP_TIMEOUT) -> Ran:
        return self.system.run_as(agent["user"], ["sh", "-ec", script, "sh", *arguments], cwd, timeout,
                                  agent["environment"])

    def directory(self, agent: dict[str, Any]) -> str:
        return agent["source"]["directory"] if agent["source"] else ""

    def command(self, agent: dict[str, Any], command: str, what: str) -> Ran:
        return worked(self.shell(agent, command, cwd=self.directory(agent)), "CommandFailed", what)

    def fetch(self, agent: dict[str, Any]) -> Ran | None:
        source = agent["source"]
        if not source:
            return None
        with self.files.folder(source["directory"] + "/.git", File("", 0o755, agent["user"], b"")):
            return worked(self.shell(agent, SOURCE, source["directory"], source["url"], source["ref"]),
                          "SourceFailed", "git")

    def place(self, agent: dict[str, Any]) -> None:
        for file in plain_files(agent):
            self.files.write(file)

    def hello(self, request: dict[str, Any], members: dict[str, bytes]) -> dict[str, Any]:
        deadline = self.system.now() + request.get("wait", 0)
        while self.progress() == request.get("seen") and self.system.now() < deadline:
            self.system.sleep(0.02)
        progress, state, identity = self.progress(), self.state(), self.identity()
        state["steps"] += self.files.document(NOTE) or []
        blob = base64.b64decode(self.files.read(HOST_KEY)[0].split()[1])
        proven = "\n".join(("agentfleet hello v1", identity["fleet"], identity["server"], request["nonce"],
                            hashlib.sha256(blob).hexdigest())).encode()
        keys = {"boot": identity.get("bootProofKey"), "resume": state["resumeKey"]}
        macs = {name: hmac.new(bytes.fromhex(key), proven, "sha256").hexdigest() for name, key in keys.items() if key}
        return {"server": identity["server"], "macs": macs, "progress": progress, "steps": state["steps"],
                "everArmed": state["everArmed"], **self.about(state)}

    def about(self, state: dict[str, Any]) -> dict[str, Any]:
        states = {step["state"] for step in state["steps"]}
        phase = "Pending" if not states else "Failed" if "Failed" in states else \
            "Installed" if states == {"Done"} else "Installing"
        return {"phase": phase, "armed": None, "epoch": state["epoch"], "applied": None, "unit": None}

    def upgrade(self, request: dict[str, Any], members: dict[str, bytes]) -> dict[str, Any]:
        """Puts another program in this one's place once it has shown that it runs; the last one is kept."""
        program = File(PROGRAM, 0o755, "root", members.get("program", b""))
        if hashlib.sha256(program.content).hexdigest() != request["sha256"]:
            raise Failure("UpgradeRefused", "not the program that was announced")
        with self.files.locked(VAR + "lock", LOCK_WAIT):
            self.files.write(program._replace(path=PROGRAM + ".new"))
            ran = run([sys.executable, "-IS", self.system.root + PROGRAM + ".new", "--version"], 20)
            if not (ran.code == 0 and ran.tail):
                raise Failure("UpgradeRefused", "the program does not run here", ran.tail)
            last = self.files.read(PROGRAM)
            if last and last[0] != program.content:
                self.files.write(program._replace(path=PROGRAM + ".previous", content=last[0]))
            self.files.write(program)
        return {"upgraded": True}

    def serve(self, verb: str, stdin: BinaryIO) -> dict[str, Any]:
        if verb not in SHAPES:
            raise Failure("BadCommand", "known here: " + " ".join(SHAPES))
        tarred = verb in ("configure", "upgrade")
        limit = MAX_TAR if tarred else MAX_JSON
        signal.alarm(60)
        data = stdin.read(limit + 1)
        signal.alarm(0)
        if len(data) > limit:
            raise bad(f"more than {limit} bytes")
        request, members = unpack(data) if tarred else (parse(data), {})
        fit(request, SHAPES[verb], verb)
        if verb in ("status", "logs", "probe"):
            self.claim(request, self.state())
        elif verb != "hello":
            with self.changing() as state:
                self.claim(request, state)
        return getattr(self, verb)(request, members)


def main(argv: list[str], stdin: BinaryIO, stdout: BinaryIO, system: System) -> int:
    os.umask(0o077)
    guest, verb = Guest(system), argv[-1]
    if argv == ["--version"]:
        print(VERSION)
        return 0
    if argv == ["install"]:
        return int(not guest.install())
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


# ---- cut ----
VERSION = "1.0.0"
# User-data leaves out what stands between the two cut lines; `upgrade` brings the whole, in which this part extends
# the classes before it. A verb stores its epoch before it acts.
KEPT, ENVIRONMENT = VAR + "kept/files.json", ETC + "environment"
SETTLE, SETTLE_FIRST = 0.5, 0.25  # seconds that a unit has to stay up; the first time there is nothing to give way to
IN_A_ROW = 2  # seconds in which the next steps of an installation are waited for
MAX_KEPT = 128 << 10  # characters of put-away content in one answer
CHANGES, MAX_LOG = "changes.log", 1 << 20  # bytes, then it is begun anew and the last one kept

Check = Callable[[Any, str], bool]


def each(shape: Any) -> Check:
    """A list of one shape."""
    def check(value: Any, where: str) -> bool:
        return isinstance(value, list) and len(value) <= 128 and all(
            fit(item, shape, f"{where}[{index}]") is None for index, item in enumerate(value))
    return check


def or_null(shape: Any) -> Check:
    return lambda value, where: value is None or fit(value, shape, where) is None


def boolean(value: Any, where: str) -> bool:
    return isinstance(value, bool)


def environment(value: Any, where: str) -> bool:
    return isinstance(value, dict) and all(
        re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", key) and fit(value[key], TEXT, where) is None for key in value)


TEXT, WORD = re.compile(r"[^\0]*"), re.compile(r"[A-Za-z0-9._:-]{1,128}")
NAME, TAG = re.compile(r"[a-z_][a-z0-9_-]{0,31}"), re.compile(r"([0-9a-f]{2}){8,64}")
PATH = re.compile(r"(?!.{1024})(/(?!\.\.?(/|$))[^/\0-\x1f\x7f]+)+")
BASE64 = re.compile(r"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
COUNT = range(1 << 31)
PLACE = {"path": PATH, "mode": re.compile("0?[0-7]{3}"), "owner": NAME}
DESCRIPTION = {
    "instance": WORD, "incarnation": COUNT, "user": NAME, "configRevision": WORD,
    "packages": each(re.compile(r"[a-z0-9][a-z0-9+.:=~-]*")),
    "source": or_null({"url": re.compile(r"[^\s-]\S*"), "ref": re.compile(r"\w[\w./+-]*"), "directory": PATH}),
    "install": each(TEXT), "update": each(TEXT), "files": each(PLACE | {"content": TEXT}),
    "environment": environment, "secretPaths": each(PATH),
    "unit": {"name": re.compile(r"[A-Za-z0-9][\w:.@-]{0,200}\.service", re.A), "text": TEXT},
}
CONFIGURE = {
    "epoch": EPOCH, "instance": WORD, "incarnation": COUNT, "resumeKey": TAG, "description": DESCRIPTION,
    "secretsTag": WORD, "settle?": range(11), "secretFiles": each(
        PLACE | {"member": re.compile("files/[0-9]{1,3}"), "tag": TAG, "agentMayChange": boolean}),
    "kept?": each(PLACE | {"declaredTag": TAG, "content": or_null(BASE64)}),
}


def consistent(request: Any, where: str) -> bool:
    """A configure whose parts belong together."""
    fit(request, CONFIGURE, where)
    agent = request["description"]
    if any(agent[key] != request[key] for key in ("instance", "incarnation")):
        raise bad("description: of another instance or incarnation")
    paths = [file["path"] for file in agent["files"] + request["secretFiles"]] + [
        file.path for file in unit_files(agent)] + [AGENT, IDENTITY, STATE]
    if len(set(paths)) < len(paths):
        raise bad("a path is declared twice, or is the guest's own")
    return True


# What a request holds: a dict (keys that end in "?" may be missing), a pattern, a range, or a check.
SHAPES |= {
    "configure": consistent,
    "status": {"epoch": EPOCH},
    "restart": {"epoch": EPOCH, "settle?": range(11)},
    "logs": {"epoch": EPOCH, "lines": range(1, 201)},
    "probe": {"epoch": EPOCH, "command": TEXT, "timeout": range(1, 61)},
    "release": {"epoch": EPOCH},
}


class System(System):
    """Unit, journal and cgroup as well."""

    def systemctl(self, *arguments: str) -> Ran:
        """A stop ends within the time that the unit says, if that is not more than ten minutes."""
        return run(["systemctl", *arguments], 600 if arguments[0] == "stop" else 100)

    def reload_soon(self) -> None:
        """Lets systemd read all units again, for those who ask it about them: nobody waits for that.

        Not at once: meanwhile systemd does nothing else, and the answer is still on its way.
        """
        quiet = {name: subprocess.DEVNULL for name in ("stdin", "stdout", "stderr")}
        subprocess.Popen(["sh", "-c", "sleep 1; exec systemctl daemon-reload"], start_new_session=True, **quiet)

    def unit_state(self, name: str) -> dict[str, Any]:
        shown = dict(line.partition("=")[::2] for line in self.systemctl(
            "show", "--timestamp=unix", "-p",
            "LoadState,ActiveState,SubState,Result,NRestarts,ActiveEnterTimestamp", name).tail)
        since = shown.get("ActiveEnterTimestamp", "")[1:]
        return {"load": shown.get("LoadState", ""), "active": shown.get("ActiveState", ""),
                "sub": shown.get("SubState", ""), "result": shown.get("Result", ""),
                "restarts": int(shown.get("NRestarts") or 0),
                "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(since))) if since else None}

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
        for pid in self.cgroup_pids(group):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def former(name: str) -> str:
    return f".{name}.agentfleet-old"


class Files(Files):
    """Changes that can be taken back."""

    def same(self, file: File) -> bool:
        """Whether the file is there already, with content, mode and owner."""
        with suppress(Failure):
            found = self.read(file.path)
            return found is not None and (found[0], stat.S_IMODE(found[1].st_mode), found[1].st_uid) == (
                file.content, file.mode, self.system.user(file.owner)[0])
        return False

    def is_staged(self, path: str) -> bool:
        with suppress(FileNotFoundError), self.folder(path) as (fd, name):
            return bool(os.stat(staged(name), dir_fd=fd, follow_symlinks=False))
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

    def is_cut_off(self, path: str) -> bool:
        """Whether a link, or what is no folder, is in its way: what lies behind that is not the guest's."""
        with suppress(FileNotFoundError):
            folders = path.strip("/").split("/")[:-1]
            above = (os.lstat("/".join([self.system.root, *folders[:depth + 1]])) for depth in range(len(folders)))
            return not all(stat.S_ISDIR(found.st_mode) for found in above)
        return False

    def remove(self, path: str) -> None:
        self.tidy(path)
        self.swap(path)
        self.tidy(path)


ARMED = "/usr/local/lib/agentfleet/armed"
# A program of its own, as systemd waits for it at each start of the agent; the guest goes by the same words.
MAY_SPEAK = '''#!/usr/bin/python3 -IS
"""ExecCondition of the agent's unit: may it speak on this server?"""
import json
import sys


def read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b"{}"


def marker(root):
    """Who may speak here. The machine is Hetzner's id of the server, written by cloud-init before any unit starts: it
    tells a server from one that was made of its snapshot."""
    agent, identity = (json.loads(read(root + "/etc/agentfleet/" + name)) for name in ("agent.json", "identity.json"))
    machine = read(root + "/var/lib/cloud/data/instance-id").decode(errors="replace").strip()
    return {"fleet": identity.get("fleet"), "server": identity.get("server"), "machine": machine,
            "instance": agent.get("instance"), "incarnation": agent.get("incarnation")}


def is_armed(root):
    return json.loads(read(root + "/var/lib/agentfleet/state.json")).get("armed") == marker(root)


if __name__ == "__main__":
    sys.exit(not is_armed(""))
'''
SPEAKER: dict[str, Any] = {"__name__": "armed"}
exec(MAY_SPEAK, SPEAKER)

FORMER = 'cd "$1"; git rev-parse -q --verify HEAD'
BACK = 'cd "$1"; git checkout -q --force --detach "$2"'


def unit_files(agent: dict[str, Any]) -> list[File]:
    """Unit, environment, and a drop-in: no start unless armed (asked as root, hence the +) and with all secrets."""
    unit = UNITS + agent["unit"]["name"]
    paths = "".join(f"ConditionPathExists={path}\n".replace("%", "%%") for path in agent["secretPaths"])
    values = "".join('%s="%s"\n' % (key, re.sub(r'(["\\`$])', r"\\\1", value))
                     for key, value in sorted(agent["environment"].items()))
    drop_in = f"[Unit]\n{paths}[Service]\nExecCondition=+{ARMED}\nEnvironmentFile={ENVIRONMENT}\n"
    return [File(ARMED, 0o755, "root", MAY_SPEAK.encode()), private(ENVIRONMENT, values.encode()),
            File(unit, 0o644, "root", agent["unit"]["text"].encode()),
            File(unit + ".d/10-agentfleet.conf", 0o644, "root", drop_in.encode())]


def record(file: File) -> dict[str, Any]:
    return {"tag": file.tag, "mode": f"{file.mode:04o}", "owner": file.owner, "mayChange": file.may_change}


def source_key(agent: dict[str, Any]) -> str:
    return hashlib.sha256(dump([agent["source"], agent["update"]])).hexdigest()


class Guest(Guest):
    """Everything once the host key is proven.

    `configure` refuses first, then stages every file beside its target, moves the source and runs
    `update`, swaps the files in, writes tags and armed marker as one state, and starts the unit. What
    fails puts former files and commit back, and starts what ran before; where nothing ran, the new stays
    though it does not start. What is killed is found by `recover` in the next run.
    `release` disarms before it stops the unit.
    """

    def state(self) -> dict[str, Any]:
        return {"instance": "", "applied": None, "files": {}, "pending": {}, "unit": "",
                "restart": True} | super().state()

    def claim(self, request: dict[str, Any], state: dict[str, Any]) -> None:
        """An epoch belongs to one instance."""
        before, instance = state["epoch"], request.get("instance", state["instance"])
        super().claim(request, state)
        if request["epoch"] == before and state["instance"] not in ("", instance):
            raise Failure("WrongInstance", "another instance has this server: a higher epoch takes it over")
        state["instance"] = instance

    def is_armed(self) -> bool:
        return SPEAKER["is_armed"](self.system.root)

    def hello(self, request: dict[str, Any], members: dict[str, bytes]) -> dict[str, Any]:
        """Waits a moment longer while the agent is installed: steps often come in a row, and the last one is waited for."""
        answer = super().hello(request, members)
        deadline = self.system.now() + min(IN_A_ROW, request.get("wait", 0))
        while answer["phase"] == "Installing" and (left := deadline - self.system.now()) > 0:
            answer = super().hello({**request, "seen": answer["progress"], "wait": left}, members)
        return answer

    def status(self, request: dict[str, Any], members: dict[str, bytes]) -> dict[str, Any]:
        disk = os.statvfs(self.system.root or "/")
        return {"disk": {"totalBytes": disk.f_blocks * disk.f_frsize, "freeBytes": disk.f_bavail * disk.f_frsize},
                **self.about(self.state())}

    def about(self, state: dict[str, Any]) -> dict[str, Any]:
        armed = {key: state["armed"][key] for key in ("instance", "incarnation")} if self.is_armed() else None
        tags = {path: file["tag"] for path, file in state["files"].items() if file["tag"]}
        return super().about(state) | {
            "armed": armed, "applied": armed and state["applied"] and {**state["applied"], "files": tags},
            "unit": self.system.unit_state(state["unit"]) if state["unit"] else None}

    def logs(self, request: dict[str, Any], members: dict[str, bytes]) -> dict[str, Any]:
        unit = self.state()["unit"]
        return {"journal": self.system.journal(unit, request["lines"]) if unit else []}

    def probe(self, request: dict[str, Any], members: dict[str, bytes]) -> dict[str, Any]:
        agent = self.files.document(AGENT)
        ran = self.shell(agent, request["command"], cwd=self.directory(agent), timeout=request["timeout"])
        return {"exit": -1 if ran.code is None else ran.code, "timedOut": ran.code is None, "output": ran.tail}

    def restart(self, request: dict[str, Any], members: dict[str, bytes]) -> dict[str, Any]:
        with self.files.locked(VAR + "lock", LOCK_WAIT):
            if not self.is_armed():
                raise Failure("UnitFailed", "this server is not armed: configure it first")
            name = self.state()["unit"]
            self.is_known(name)
            return self.bring_up(name, request)

    def configure(self, request: dict[str, Any], members: dict[str, bytes]) -> dict[str, Any]:
        with self.files.locked(VAR + "lock", LOCK_WAIT):
            new = request["description"]
            want = self.wanted(request, members)
            known = self.refuse_early(new)
            self.store_proof_key(request["resumeKey"])
            self.recover()
            old, state = self.files.document(AGENT), self.state()
            packages = sorted(set(new["packages"]) - set(old["packages"]))
            added = self.logged("packages", lambda: self.add_packages(packages)) if packages else None
            known = known or state["unit"] != "" or added is not None  # a package may bring a unit of that name
            change = [file for file in want if self.differs(file, state)]
            gone = sorted({*state["files"], *(file.path for file in plain_files(old))} - {file.path for file in want})
            changed = [file.path for file in change if file.path != AGENT] + gone
            was_up, trial = self.is_armed() and not state["restart"], False
            try:
                with self.staged(change), self.updated(old, new) as moved, self.swapped(request, change, gone):
                    self.arm(request, want)
                    trial = was_up and bool(changed or moved)
                    if trial:
                        spoken = self.speak(request, state, True, known)
            except Exception as error:
                failure = Failure.of(error)
                if trial:
                    failure.more["restored"] = self.speak_as_before(request, state, old if moved else None)
                raise failure from None
            if not trial:
                spoken = self.speak(request, state, bool(changed or moved), known)
            return {"changed": changed, **spoken}

    def logged(self, name: str, act: Callable[[], Any]) -> Any:
        """A part of `configure` that is logged on the server as the steps of the installation are, in a log that does not grow for ever."""
        log = self.system.root + VAR + CHANGES
        with suppress(OSError):
            if os.stat(log).st_size > MAX_LOG:
                os.replace(log, log + ".1")
        step = {"name": name, "at": time.strftime("%FT%TZ", time.gmtime())}
        began = time.monotonic()
        try:
            ran = act()
            step |= {"state": "Done", "tail": ran.tail[-3:] if ran else []}
            return ran
        except Exception as error:
            step |= failed(error)
            raise
        finally:
            self.log(CHANGES, step | {"seconds": round(time.monotonic() - began, 1)})

    def run_update(self, agent: dict[str, Any], what: str) -> None:
        for index, command in enumerate(agent["update"], 1):
            name = what.format(index)
            self.logged(name, lambda command=command, name=name: self.command(agent, command, name))

    def refuse_early(self, agent: dict[str, Any]) -> bool:
        """What must not be found out when half is done; answers whether systemd knows the unit."""
        if self.about(self.state())["phase"] != "Installed":
            raise Failure("NotInstalled", "the install has not ended well: ask hello for its steps")
        self.system.user(agent["user"])
        user = self.state().get("user", agent["user"])
        if user != agent["user"]:
            raise Failure("UserMissing", f"what is on this disk belongs to {user}: declare that user again")
        return self.is_known(agent["unit"]["name"])

    def is_known(self, name: str) -> bool:
        """Whether systemd knows the unit, which must not be masked."""
        load = self.system.unit_state(name)["load"]
        if load == "masked":
            raise Failure("UnitMasked", f"{name} is masked: run systemctl unmask {name} on the server")
        return load != "not-found"

    def store_proof_key(self, key: str) -> None:
        with self.changing() as state:
            state["resumeKey"] = key
        identity = self.identity()
        if identity.pop("bootProofKey", None):
            self.files.write(private(IDENTITY, dump(identity)))

    def wanted(self, request: dict[str, Any], members: dict[str, bytes]) -> list[File]:
        """All files as they are to be; what the agent had changed comes from where it was put away."""
        agent = request["description"]
        files = plain_files(agent) + unit_files(agent)
        kept = {(file["path"], file["declaredTag"]): base64.b64decode(file["content"])
                for file in self.kept() + request.get("kept", []) if file["content"] is not None}
        for file in request["secretFiles"]:
            if file["member"] not in members:
                raise bad(f"tar: {file['member']} is missing")
            content, change = members[file["member"]], file["agentMayChange"]
            content = kept.get((file["path"], file["tag"]), content) if change else content
            files.append(File(file["path"], int(file["mode"], 8), file["owner"], content, file["tag"], change))
        files.append(private(AGENT, dump(agent)))
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
            if not self.files.is_cut_off(path):
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
    def updated(self, old: dict[str, Any], new: dict[str, Any]) -> Iterator[bool]:
        """The block runs on the new source; if that or the block fails, the former commit comes back."""
        folder = self.directory(new)
        before = self.state()
        moved = (before["source"] or source_key(old)) != source_key(new)
        head = self.shell(new, FORMER, folder) if moved and folder else Ran(1, [])
        try:
            if moved:
                with self.changing() as state:
                    state |= {"source": "unfinished", "restart": True}
                self.logged("source", lambda: self.fetch(new))
                self.run_update(new, "update command {}")
            yield moved
        except Exception as error:
            back = moved and head.code == 0 and self.shell(new, BACK, folder, head.tail[-1])
            if back and back.code == 0:
                with self.changing() as state:
                    state["restart"] = before["restart"]
            elif back:
                failure = Failure.of(error)
                failure.error["message"] += f"; {folder} did not go back to its former commit"
                raise failure from None
            raise
        with self.changing() as state:
            state["source"] = source_key(new)

    @contextmanager
    def swapped(self, request: dict[str, Any], files: list[File], gone: list[str]) -> Iterator[None]:
        """Puts staged files in and undeclared ones out; back again if that or the block fails."""
        with self.changing() as state:
            self.claim(request, state)
            former = {key: state[key] for key in ("armed", "applied", "files", "restart")}
            state |= {"pending": {file.path: record(file) for file in files},
                      "restart": state["restart"] or any(file.path != AGENT for file in files) or bool(gone)}
        done: list[str] = []
        try:
            for path in [file.path for file in files] + gone:
                self.files.swap(path)
                done.append(path)
            yield
        except Exception:
            with self.changing() as state:
                state["applied"] = None  # should this be cut: neither all of the one nor all of the other
            for path in done:
                self.files.restore(path)
            with self.changing() as state:
                state |= former | {"pending": {}}
            raise
        for path in gone:
            self.files.tidy(path)

    def arm(self, request: dict[str, Any], files: list[File]) -> None:
        with self.changing() as state:
            self.claim(request, state)
            state |= {"armed": SPEAKER["marker"](self.system.root), "everArmed": True, "pending": {},
                      "user": request["description"]["user"],
                      "unit": state["unit"] or request["description"]["unit"]["name"],
                      "files": {file.path: record(file) for file in files},
                      "applied": {"configRevision": request["description"]["configRevision"],
                                  "secretsTag": request["secretsTag"]}}

    def speak(self, request: dict[str, Any], before: dict[str, Any], changed: bool, known: bool) -> dict[str, Any]:
        """Starts the unit if anything that it sees has changed, or if it does not run."""
        name = request["description"]["unit"]["name"]
        if before["unit"] not in ("", name):
            self.silence(before["unit"])
        self.files.remove(KEPT)
        with self.changing() as state:
            state["unit"] = name
        up = {} if changed or before["restart"] else {"unit": self.system.unit_state(name)}
        restart = not up or up["unit"]["active"] != "active"
        if restart:
            up = self.bring_up(name, request, known)
        state = self.state()
        return {"armed": True, "epoch": state["epoch"], **state["applied"], "restarted": restart, **up}

    def speak_as_before(self, request: dict[str, Any], before: dict[str, Any], former: dict[str, Any] | None) -> bool:
        """Starts the former unit on the former files, after the update commands if the source had moved."""
        name, tried = before["unit"], request["description"]["unit"]["name"]
        with suppress(Failure):
            if tried != name:
                self.silence(tried)
            with self.changing() as state:
                state |= {"unit": name, "restart": True}
            if former:
                self.run_update(former, "former update command {}")
            self.bring_up(name, request)
            return True
        return False

    def bring_up(self, name: str, request: dict[str, Any], known: bool = True) -> dict[str, Any]:
        """Starts the unit afresh and sees that it stays up.

        A unit that systemd does not know yet has not failed, and is read without being told to.
        """
        if known:
            self.system.systemctl("reset-failed", name)
            self.ordered(name, "enable", "--no-reload", name)
            self.ordered(name, "daemon-reload")
            self.ordered(name, "restart", name)
        else:
            self.ordered(name, "enable", "--no-reload", "--now", name)
        until = self.system.now() + request.get("settle", SETTLE if known else SETTLE_FIRST)
        restarts = self.system.unit_state(name)["restarts"] if known else 0
        with self.changing() as state:
            state["restart"] = False
        self.system.sleep(max(until - self.system.now(), 0))
        unit = self.system.unit_state(name)
        if unit["active"] == "active" and unit["restarts"] == restarts:
            if not known:
                self.system.reload_soon()
            return {"unit": unit}
        with self.changing() as state:
            state["restart"] = True
        raise self.unit_failed(name, f"did not stay up: {unit['active']}, {unit['sub']}, {unit['result']}", [])

    def ordered(self, name: str, *arguments: str) -> None:
        ran = self.system.systemctl(*arguments)
        if ran.code != 0:
            raise self.unit_failed(name, f"systemctl {arguments[0]} failed", ran.tail)

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
        with self.files.locked(VAR + "lock", LOCK_WAIT):
            with self.changing() as state:
                state |= {"armed": None, "restart": True}
            if state["unit"]:
                self.silence(state["unit"])
            self.recover()
            secrets = {path: file for path, file in self.state()["files"].items() if file["tag"]}
            kept = self.put_away({path: file for path, file in secrets.items() if not self.files.is_cut_off(path)})
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
        self.files.write(private(KEPT, dump(list(kept.values()))))
        for path in secrets:
            self.files.remove(path)
        left, answer = MAX_KEPT, []
        for file in kept.values():
            left -= len(file["content"])
            answer.append(file if left >= 0 else {**file, "content": None})
        return answer
# ---- cut ----

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdin.buffer, sys.stdout.buffer, System()))
