"""A parser that lets a foreign error out."""

from __future__ import annotations

from fuzz.target import Target
from tests.fuzz import toy_good


def check(data: bytes) -> bool:
    """Look up what the input may not hold."""
    return {b"": True}[data[4:5]]


TARGET = Target(check, toy_good.seeds, max_bytes=16)
