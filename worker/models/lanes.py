"""A CPU's forward passes side by side: one thread per processor, each with a piece of the token batch to itself.

Spreading every product over all processors instead makes them meet at each of its ends: whichever was taken away for a
moment, by another stage of the engine or another process, holds up the rest, which spin meanwhile. Pieces meet once a
batch, and a processor that comes late takes fewer of them. Kernels that run on one thread also sum in one order,
however many processors there are. docs/adr/0018 has the numbers.

Called by worker.models.bert. May import: the standard library, torch.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import TypeVar

    P = TypeVar("P")
    R = TypeVar("R")

#: Most tokens of a piece: matrices of so many rows are multiplied at full speed and stay in the cache.
PIECE_TOKENS: Final = 1_024
#: Smaller pieces keep no kernel busy, so a small batch occupies fewer processors.
LEAST_TOKENS: Final = 128


class Lanes:
    """Threads that compute, as many as torch would spread a product over when this is made."""

    def __init__(self) -> None:
        self.count = torch.get_num_threads()
        self._executor = ThreadPoolExecutor(self.count, thread_name_prefix="lane", initializer=_compute_alone)

    def run(self, act: Callable[[P], R], pieces: Iterable[P]) -> list[R]:
        """Run pieces, each on the next thread that is free; one result per piece, in order.

        Raises:
            Exception: whatever `act` raised first; pieces behind it may still run.
        """
        return list(self._executor.map(act, pieces))


def _compute_alone() -> None:
    # OpenMP and MKL keep this number per thread; that of the thread which made the lanes stays as it is.
    torch.set_num_threads(1)


def cut(lengths: Sequence[int], *, lanes: int) -> list[list[int]]:
    """Cut a token batch into pieces, the longest rows first so that the last pieces to end are the smallest.

    Args:
        lengths: tokens of each row.
        lanes: processors to be kept busy.

    Returns:
        Indices of the rows of each piece, by length: rows of one length mostly share a piece. A single row over the
        most tokens of a piece goes alone.
    """
    share = -(-sum(lengths) // lanes)
    most_tokens = min(max(share, LEAST_TOKENS), PIECE_TOKENS)
    pieces: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not pieces or lengths[index] > room:
            pieces.append([])
            room = most_tokens
        pieces[-1].append(index)
        room -= lengths[index]
    return pieces
