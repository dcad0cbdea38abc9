"""Only what the secret signed just now is taken."""
from __future__ import annotations

import hmac

import pytest

from signature import is_valid

BODY, NOW = b'{"id": "evt_1"}', 1_700_000_000


def v1(secret: bytes, at: object = NOW, body: bytes = BODY) -> str:
    return hmac.new(secret, f"{at}.".encode() + body, "sha256").hexdigest()


def test_what_the_secret_signed_is_valid_also_beside_another_secrets_signature():
    assert is_valid(f"t={NOW},v1={v1(b'right')}", BODY, [b"right"], NOW)
    assert is_valid(f"t={NOW}, v1={v1(b'old')}, v1={v1(b'new')}, v0=6ffbb5", BODY, [b"new"], NOW)
    assert is_valid(f"t={NOW},v1={v1(b'old')}", BODY, [b"new", b"old"], NOW)


@pytest.mark.parametrize("seconds, valid", [(-301, False), (-300, True), (300, True), (301, False)])
def test_an_old_signature_and_one_of_the_future_are_not_taken(seconds, valid):
    assert is_valid(f"t={NOW},v1={v1(b'right')}", BODY, [b"right"], NOW + seconds) is valid


@pytest.mark.parametrize("header", [
    "", "t=,v1=", f"t={NOW}", f"v1={v1(b'right')}", f"t={NOW},v1=", f"t={NOW},v1={v1(b'wrong')}", f"t={NOW},v0={v1(b'right')}",
    f"t={NOW},t={NOW},v1={v1(b'right')}", f"t={NOW + 1},v1={v1(b'right')}", f"t=-5,v1={v1(b'right', -5)}",
    f"t={NOW}.0,v1={v1(b'right', f'{NOW}.0')}", f"t={'9' * 400},v1={v1(b'right', '9' * 400)}", f"t={NOW},v1={v1(b'right')}\u00e9", "t=\u0664,v1=a",
    f"t={NOW},v1={v1(b'right', NOW, BODY + b' ')}",
])
def test_nothing_else_is(header):
    assert not is_valid(header, BODY, [b"right"], NOW)


def test_without_a_secret_nothing_is():
    assert not is_valid(f"t={NOW},v1={v1(b'')}", BODY, [], NOW)
