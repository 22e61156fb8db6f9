"""A parser that keeps a little of every input."""

from __future__ import annotations

from typing import Final

from fuzz.target import Target
from tests.fuzz import toy_good

_kept: Final[list[bytearray]] = []


def check(data: bytes) -> bool:
    """Keep 4 KiB."""
    _kept.append(bytearray(b"x" * 4_096))
    return toy_good.check(data)


TARGET = Target(check, toy_good.seeds, max_bytes=16)
