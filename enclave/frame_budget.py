"""How many bytes of frames the enclave holds at once (docs/spec.md §6).

A request is read only when its own length and that of its answer both fit, taken in one step: two frames that are each
half admitted can therefore never wait for each other.

Called by `enclave.connection`. May import: the standard library.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Final

CAPACITY_BYTES: Final = 256 << 20  #: docs/spec.md §6; the enclave's own memory is above it.
STRANGERS_BYTES: Final = 96 << 20  #: Of these, at most so many for peers without the token: the engines keep the rest.
#: What decoded headers may take beside the frames that they came in.
HEADERS_BYTES: Final = 128 << 20
#: Frames up to this length never wait, so that health and hello are answered under any load: with 64 connections they
#: take 8 MiB at most.
FREE_BYTES: Final = 64 << 10


class FrameBudget:
    """Admits frames first come, first served.

    Args:
        capacity_bytes: bytes of requests and answers held at once.
        within: the budget that this one is a share of.
    """

    def __init__(self, capacity_bytes: int = CAPACITY_BYTES, *, within: FrameBudget | None = None) -> None:
        self._within = within
        self._left = capacity_bytes
        self._changed = threading.Condition()
        self._line: deque[object] = deque()
        self._is_closed = False

    @contextmanager
    def admitted(self, length: int, *, copies: int = 2) -> Iterator[None]:
        """Hold the memory of a request of `length` bytes and of its answer while inside the block.

        Args:
            length: bytes of the request.
            copies: how many times that many bytes the request, its answer and what is made between them take.

        A binary answer is never longer than its request by more than the free frame: opening drops header and tag, and
        a sealed result's header is shorter than the AAD and the ticket that come with the request to seal it.

        Raises:
            ConnectionError: the enclave stops.
        """
        if length <= FREE_BYTES:
            yield
            return
        cost = copies * length
        self._take(cost)
        try:
            with self._within.admitted(length, copies=copies) if self._within else nullcontext():
                yield
        finally:
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
