"""Stripe's signature scheme, which the calls of WHMCS use too: `t=<seconds>,v1=<hex of HMAC-SHA256(secret, t + "." + body)>`."""
from __future__ import annotations

import hmac

# How far the sender's clock may be off, and how late a recorded request can be sent once more.
TOLERANCE_S = 300


def is_valid(header: str, body: bytes, secrets: list[bytes], now: float) -> bool:
    """Whether one of the secrets signed this body just now; while a secret is being changed there are two, and several `v1`."""
    parts = [part.strip().partition("=") for part in header.split(",")]
    times = [value for key, _, value in parts if key == "t"]
    if len(times) != 1 or not (times[0].isascii() and times[0].isdigit()) or len(times[0]) > 12:
        return False
    if abs(now - int(times[0])) > TOLERANCE_S:
        return False
    signed = times[0].encode() + b"." + body
    right = [hmac.new(secret, signed, "sha256").hexdigest().encode() for secret in secrets]
    given = [value.encode() for key, _, value in parts if key == "v1"]
    return any([hmac.compare_digest(one, other) for one in given for other in right])
