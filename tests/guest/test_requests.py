"""What comes in over the wire is bounded, typed, and never believed."""
from __future__ import annotations

import io
import json
import tarfile
from typing import Any

from machine import SECRET, GuestTest, archive, configuration, guest


class Requests(GuestTest):
    def refused(self, verb: str, data: bytes) -> str:
        code, answer = self.machine.raw(verb, data)
        self.assertEqual(code, 0)
        return self.assert_refused(answer, "BadRequest")["message"]

    def test_only_the_verbs_are_known(self) -> None:
        for command in ("", "shell", "hello; id", "configure x", "__init__", "install", "HELLO"):
            code, answer = self.machine.raw(command, b"{}")
            self.assertEqual(code, 1)
            self.assert_refused(answer, "BadCommand")

    def test_garbage_is_refused(self) -> None:
        deep = b"[" * 60_000
        for data in (b"", b"\xff\xfe", b"{", b"[]", b"null", b"{}{}", b'{"nonce": NaN}', deep, b'"\\ud800"'):
            self.refused("hello", data)
            self.refused("configure", data)

    def test_too_much_is_refused_before_it_is_parsed(self) -> None:
        self.assertIn("65536", self.refused("hello", b" " * 65_537))
        self.assertIn("more than", self.refused("configure", b"\0" * ((10 << 20) + 1)))

    def test_each_field_of_hello_is_typed(self) -> None:
        good = {"nonce": "ab" * 32, "wait": 0, "seen": ""}
        for change in ({"nonce": "AB" * 32}, {"nonce": 1}, {"nonce": None}, {"wait": 26}, {"wait": -1}, {"wait": "1"},
                       {"wait": True}, {"wait": 1.0}, {"seen": "x\n"}, {"seen": None}, {"more": 1}):
            self.refused("hello", json.dumps(good | change).encode())
        self.assertIn("nonce", self.refused("hello", b"{}"))

    def test_epochs_are_whole_and_positive(self) -> None:
        for epoch in (0, -1, 1.5, "1", None, True, 1 << 60):
            self.refused("release", json.dumps({"epoch": epoch}).encode())
        self.assertEqual(self.machine.hello()["epoch"], 0)

    def test_each_field_of_configure_is_typed(self) -> None:
        for change in ({"instance": "a b"}, {"instance": "uid-2"}, {"incarnation": 2}, {"resumeKey": "xyz"},
                       {"secretsTag": 5}, {"secretFiles": {}}, {"description": None}, {"settle": 99}, {"unknown": 1},
                       {"kept": [{"path": "/a"}]}):
            request, members = configuration()
            self.refused("configure", archive(request | change, members))
        self.assertEqual(self.machine.hello()["epoch"], 0)

    def test_each_field_of_a_description_is_typed(self) -> None:
        for change in ({"user": "a;b"}, {"user": "-x"}, {"packages": ["--reinstall"]}, {"packages": "git"},
                       {"source": {"url": "--upload-pack=x", "ref": "main", "directory": "/a"}},
                       {"source": {"url": "u", "ref": "--x", "directory": "/a"}}, {"install": [1]},
                       {"environment": {"A=B": "c"}}, {"environment": {"A": 1}}, {"environment": {"A": "\0"}},
                       {"unit": {"name": "../x.service", "text": ""}}, {"unit": {"name": "x.timer", "text": ""}},
                       {"secretPaths": ["relative"]}, {"secretPaths": ["/a\nExecStart=/bin/sh"]},
                       {"files": [{"path": "/a", "mode": "4755", "owner": "agent", "content": ""}]}):
            request, members = configuration(**change)
            self.refused("configure", archive(request, members))

    def test_paths_are_absolute_and_normal(self) -> None:
        for path in ("a", "", "/", "//a", "/a/", "/a//b", "/a/../b", "/..", "/.", "/a/.", "/a\0", "/a\n", "/" + "a" * 1100):
            self.refused("configure", archive(*configuration(1, {path: b""})))
        self.assert_done(self.machine.configure(1, {"/home/agent/..a/...": b"", SECRET: b""}))

    def test_no_path_is_declared_twice_or_the_guests_own(self) -> None:
        for path in ("/etc/agent.conf", "/etc/systemd/system/agent.service", "/etc/agentfleet/agent.json",
                     "/etc/agentfleet/identity.json", "/var/lib/agentfleet/state.json"):
            self.refused("configure", archive(*configuration(1, {path: b""})))

    def test_a_tar_holds_what_was_announced_and_nothing_else(self) -> None:
        request, members = configuration()
        self.refused("configure", archive(request, {}))
        self.refused("configure", archive(request, members | {"../../etc/passwd": b""}))
        self.refused("configure", archive(request, members | {"files/0/x": b""}))
        self.refused("configure", b"".join([archive(request, members)[:700]]))
        self.refused("configure", archive(request, members | {"files/1": b"\0" * (8 << 20)}))

    def test_links_and_devices_in_a_tar_are_refused(self) -> None:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            self.refused("configure", self.tar_with("files/0", kind))

    def test_the_request_comes_first_and_once(self) -> None:
        self.refused("configure", self.tar_with("files/0", tarfile.REGTYPE, first=True))
        self.refused("configure", self.tar_with("request.json", tarfile.REGTYPE))

    def tar_with(self, name: str, kind: bytes, first: bool = False) -> bytes:
        data = io.BytesIO()
        request: Any = json.dumps(configuration()[0]).encode()
        with tarfile.open(fileobj=data, mode="w") as tar:
            items = [("request.json", tarfile.REGTYPE, request), (name, kind, b"")]
            for member, its_kind, content in reversed(items) if first else items:
                item = tarfile.TarInfo(member)
                item.type, item.size, item.linkname = its_kind, len(content), "/etc/passwd"
                tar.addfile(item, io.BytesIO(content))
        return data.getvalue()

    def test_an_answer_to_nobody_is_no_error(self) -> None:
        class Closed(io.BytesIO):
            def flush(self) -> None:
                raise BrokenPipeError
        self.assertEqual(guest.main(["ssh", "hello"], io.BytesIO(b"{}"), Closed(), self.machine.system()), 0)
