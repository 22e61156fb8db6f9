"""What the engine counts since its start; shown by the health message.

May import: the standard library. Called by worker.engine.
"""

from __future__ import annotations

import threading
from typing import Final

NAMES: Final = (
    "batches",
    "jobs",
    "jobs_ok",
    "jobs_partial",
    "jobs_failed",
    "jobs_refused",
    "texts",
    "token_batches",
    "tokens",
    "open_ms",
    "forward_ms",
    "seal_ms",
    "scrubs",
    "scrub_ms",
    "tokeniser_deaths",
)


class Counters:
    """Named counts that only grow; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(NAMES, 0.0)

    def add(self, **amounts: float) -> None:
        """Add to counters of NAMES."""
        with self._lock:
            for name, amount in amounts.items():
                self._counts[name] += amount

    def snapshot(self) -> dict[str, int]:
        """Return all counts; times in whole milliseconds."""
        with self._lock:
            return {name: int(count) for name, count in self._counts.items()}
