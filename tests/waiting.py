"""Waiting on conditions: tests never sleep for a guess."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

_PAUSE_S: Final = 0.02


def until(condition: Callable[[], T], *, within_s: float, what: str) -> T:
    """Return the first true value of `condition`, or fail naming `what` after `within_s`."""
    end = time.monotonic() + within_s
    pause = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {within_s} s: {what}"
        pause.wait(_PAUSE_S)
