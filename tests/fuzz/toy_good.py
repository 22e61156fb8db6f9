"""A parser without fault."""

from __future__ import annotations

from fuzz.target import Target


def check(data: bytes) -> bool:
    """Accept what begins with a zero."""
    return data[:1] == b"\x00"


def seeds() -> dict[str, bytes]:
    """One of each."""
    return {"accepted": b"\x00", "refused": b"\x01"}


TARGET = Target(check, seeds, max_bytes=16)
