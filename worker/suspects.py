"""What to rerun after an engine died, and how: pure policy.

A process that dies says nothing about which of its jobs killed it. Each of its job batches is rerun in halves, alone in
an engine, until the guilty job is alone at a death; at the second such death it is poison. A job that was merely
beside it is never counted.

May import: the standard library. Called by worker.dispatch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, Generic, TypeVar

#: Engine deaths of a job that was alone; at this many it is dead-lettered as `poison`.
POISON_DEATHS: Final = 2

J = TypeVar("J")


class Suspects(Generic[J]):
    """Job batches that were in an engine when it died, each to be rerun with nothing else in the engine."""

    def __init__(self) -> None:
        self._groups: deque[list[J]] = deque()

    def __len__(self) -> int:
        return sum(map(len, self._groups))

    def add_death(self, batches: Sequence[Sequence[J]]) -> J | None:
        """Note the death of one engine.

        Args:
            batches: all that was in it.

        Returns:
            The job that was alone in the engine, for the caller to count against it; it is not queued here.
        """
        if len(batches) == 1 and len(batches[0]) == 1:
            return batches[0][0]
        for batch in batches:
            middle = (len(batch) + 1) // 2
            self._groups += [list(half) for half in (batch[:middle], batch[middle:]) if half]
        return None

    def add(self, job: J) -> None:
        """Queue one job to be rerun alone: it was alone at an engine death before."""
        self._groups.append([job])

    def next(self) -> list[J] | None:
        """Take the next batch to rerun."""
        return self._groups.popleft() if self._groups else None
