"""What a model on a device of its own queues offers beside `worker.models.base.Model`: launch now, collect later.

Optional. The engine asks with isinstance; a model without it is run one batch at a time, as a CPU is.

May import: the standard library, worker.models.base. Called by worker.engine and worker.models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.models.base import Ids, Outputs


class Flight(Protocol):
    """One token batch between launch and collect."""

    def collect(self) -> Outputs:
        """Wait for the batch and return what `Model.forward` returns. Called once, in the order of the launches."""


@runtime_checkable
class Overlapping(Protocol):
    """A model whose device works while the host prepares the next batch; `forward` is launch and collect at once."""

    def launch(self, rows: Sequence[Ids]) -> Flight:
        """Enqueue one token batch; the ids may be zeroed as soon as it returns.

        Raises:
            DeviceOutOfMemory: the batch does not fit; those in flight go on.
        """

    def warm_up(self, budget_tokens: int) -> None:
        """Make buffers for token batches up to a budget and run each of their sizes. Called once, before `launch`."""

    def scrub(self) -> None:
        """Overwrite what finished batches left on the device beside what `collect` zeroed. Nothing is in flight."""
