"""Which rows go through the next forward pass: first come, first served, up to a budget of tokens.

Pure policy without clocks, locks or tensors; `worker.engine.pipeline` asks it. Packed batches have no padding, so
arrival order costs nothing and nobody waits for texts of a fitting length. There is no wait timer either: what is
there when the device becomes free goes, and more gathers meanwhile.

May import: the standard library.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

#: What rows must have in common to share a batch: the model, and whose company they may keep.
K = TypeVar("K")
R = TypeVar("R")


class Packer(Generic[K, R]):
    """Rows waiting for a device, in order of arrival.

    Args:
        budget_tokens: most tokens of one batch; a single row over it goes alone.
    """

    def __init__(self, budget_tokens: int) -> None:
        self._budget_tokens = budget_tokens
        self._waiting: deque[tuple[K, R, int]] = deque()
        self._waiting_tokens = 0

    @property
    def waiting_tokens(self) -> int:
        """Tokens of all rows that wait."""
        return self._waiting_tokens

    @property
    def is_full(self) -> bool:
        """Whether a whole batch waits beyond the one being filled: then whoever adds rows should pause."""
        return self._waiting_tokens >= 2 * self._budget_tokens

    def add(self, kind: K, rows: Sequence[tuple[R, int]]) -> None:
        """Append rows of one kind, each with its number of tokens."""
        for row, tokens in rows:
            self._waiting.append((kind, row, tokens))
            self._waiting_tokens += tokens

    def next_batch(self) -> tuple[K, list[R]] | None:
        """Take the longest prefix of one kind that fits the budget, at least one row; None if nothing waits."""
        if not self._waiting:
            return None
        kind = self._waiting[0][0]
        batch: list[R] = []
        room = self._budget_tokens
        while self._waiting:
            next_kind, row, tokens = self._waiting[0]
            if next_kind != kind or (batch and tokens > room):
                break
            self._waiting.popleft()
            self._waiting_tokens -= tokens
            room -= tokens
            batch.append(row)
        return kind, batch
