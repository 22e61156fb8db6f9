"""Counters of the `metrics` op: how much, how long, and nothing about whom (docs/spec.md §6).

Called by every other module of the enclave. May import: the standard library.
"""

from __future__ import annotations

import threading
from collections import Counter


class Counters:
    """Named unsigned counters since boot, shared by all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: Counter[str] = Counter()

    def add(self, **amounts: int) -> None:
        """Add to counters by name."""
        with self._lock:
            for name, amount in amounts.items():
                self._values[name] += amount

    def snapshot(self) -> dict[str, int]:
        """Return every counter that was ever added to."""
        with self._lock:
            return dict(self._values)
