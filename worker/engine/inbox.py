"""Where tokenised rows wait for the device: a packer that two threads share.

May import: the standard library, worker.engine.packer. Called by worker.engine.pipeline.
"""

from __future__ import annotations

import threading
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from worker.engine.packer import Packer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.engine.jobs import Row
    from worker.models.base import Model


class Taken(NamedTuple):
    """One token batch."""

    model: Model
    #: Whose rows they are: `jobs.Row.company`.
    company: str
    rows: list[Row]


class Inbox:
    """Rows from the open stage to the forward stage, bounded in tokens.

    Args:
        budget_tokens: most tokens of one token batch.
    """

    def __init__(self, budget_tokens: int) -> None:
        #: What may share a token batch: rows of one model and one company.
        self._packer: Packer[tuple[Model, str], Row] = Packer(budget_tokens)
        self._changed = threading.Condition()
        self._is_closed = False

    def put(self, rows: Mapping[Model, Sequence[Row]]) -> None:
        """Add rows; wait while two token batches are waiting already."""
        with self._changed:
            self._changed.wait_for(lambda: not self._packer.is_full)
            for model, of_model in rows.items():
                for company, together in groupby(of_model, key=attrgetter("company")):
                    self._packer.add((model, company), [(row, len(row.ids)) for row in together])
            self._changed.notify_all()

    @property
    def is_done(self) -> bool:
        """Whether it is closed and empty."""
        with self._changed:
            return self._is_closed and not self._packer.waiting_tokens

    def take(self, *, within_s: float | None) -> Taken | None:
        """Wait for rows and take a token batch.

        Args:
            within_s: how long to wait at most; None waits until there are rows or the inbox is done.

        Returns:
            None if the time is over, or the inbox done.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._packer.waiting_tokens > 0 or self._is_closed, within_s)
            batch = self._packer.next_batch()
            self._changed.notify_all()
            if batch is None:
                return None
            (model, company), rows = batch
            return Taken(model, company, rows)

    def close(self) -> None:
        """Announce that nothing more will be put."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
