"""How many bytes of frames the enclave holds at once (docs/spec.md §6).

A request is read only when its own length and that of its answer both fit, taken in one step: two frames that are each
half admitted can therefore never wait for each other.

Called by `enclave.connection`. May import: the standard library.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

CAPACITY_BYTES: Final = 256 << 20  #: docs/spec.md §6; the enclave's own memory is above it.
#: Frames up to this length never wait, so that health and hello are answered under any load: with 64 connections they
#: take 8 MiB at most.
FREE_BYTES: Final = 64 << 10


class FrameBudget:
    """Admits frames first come, first served.

    Args:
        capacity_bytes: bytes of requests and answers held at once.
    """

    def __init__(self, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self._left = capacity_bytes
        self._changed = threading.Condition()
        self._line: deque[object] = deque()
        self._is_closed = False

    @contextmanager
    def admitted(self, length: int) -> Iterator[None]:
        """Hold the memory of a request of `length` bytes and of its answer while inside the block.

        An answer is never longer than its request by more than the free frame: opening drops header and tag, and a
        sealed result's header is shorter than the AAD and the ticket that come with the request to seal it.

        Raises:
            ConnectionError: the enclave stops.
        """
        cost = 0 if length <= FREE_BYTES else 2 * length
        if cost:
            self._take(cost)
        try:
            yield
        finally:
            if cost:
                self._give_back(cost)

    def close(self) -> None:
        """Turn away everyone who waits, and whoever comes."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _take(self, cost: int) -> None:
        place = object()
        with self._changed:
            self._line.append(place)
            try:
                # In order of arrival: otherwise small frames could keep a large one waiting for ever.
                self._changed.wait_for(lambda: self._is_closed or (self._line[0] is place and cost <= self._left))
                if self._is_closed:
                    raise ConnectionError("enclave stops")
                self._left -= cost
            finally:
                self._line.remove(place)
                self._changed.notify_all()

    def _give_back(self, cost: int) -> None:
        with self._changed:
            self._left += cost
            self._changed.notify_all()
