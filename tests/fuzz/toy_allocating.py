"""A parser that allocates what an input declares."""

from __future__ import annotations

from fuzz.target import Target
from tests.fuzz import toy_good


def check(data: bytes) -> bool:
    """Make room for as many bytes as the first four say."""
    return len(bytearray(int.from_bytes(data[:4], "big"))) > 0


TARGET = Target(check, toy_good.seeds, max_bytes=16)
