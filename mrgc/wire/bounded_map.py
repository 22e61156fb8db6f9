"""What readers and writers of sealed objects remember, within bounds.

Called by `mrgc.wire.job_forms` and `mrgc.wire.result_forms`. May import: the standard library.
"""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedMap(dict[K, V]):
    """A map that forgets everything when it is full. Threads may share one.

    Everything, because to forget the oldest would need a lock and an order, and whoever can fill it only makes others'
    objects be read in full once more.

    Args:
        entries: at most so many.
        size_bytes: of all of them together, at most.
    """

    def __init__(self, *, entries: int, size_bytes: int) -> None:
        super().__init__()
        self._max_entries = entries
        self._max_bytes = size_bytes
        self._bytes = 0

    def keep(self, key: K, value: V, *, size_bytes: int) -> None:
        """Keep a value, unless another is kept under its key."""
        if len(self) >= self._max_entries or self._bytes > self._max_bytes - size_bytes:
            self.clear()
            self._bytes = 0
        if self.setdefault(key, value) is value:
            self._bytes += size_bytes
