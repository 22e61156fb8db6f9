"""A job inside the engine: what is known of it between open and seal, and the batch that it came in.

State only, each object touched by one stage at a time: opening makes it, the forward stage fills it, sealing ends it.
Plaintext lives in the inputs' ids and in the answer; `wipe` zeroes what Python lets us zero.

May import: the standard library, mrgc, worker.engine, worker.models.base.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from mrgc.errors import ModelError, ResultTooLarge
from mrgc.wire.headers import JSON_TYPE
from worker.engine import results

if TYPE_CHECKING:
    from collections.abc import Callable

    from mrgc.errors import MrgcError
    from mrgc.wire.sealed import SealedJob
    from worker.engine.results import Body
    from worker.engine_protocol import Served
    from worker.models.base import Answer, Ids, Model

#: Digest in the header of a failure for a model that nobody has: a result header must name one (docs/spec.md §4).
_NO_DIGEST: Final = "0" * 64


@dataclass(slots=True, eq=False)
class Job:
    """One job whose form was checked; opened once it has a ticket."""

    #: The sealed job as received, kept to open it again should its ticket go stale.
    blob: memoryview
    sealed: SealedJob
    ticket: bytes = b""
    model: Model | None = None
    accept: str = JSON_TYPE
    #: What the model makes of it; none for a job that failed as a whole before it was asked.
    answer: Answer | None = field(default=None, repr=False)
    #: Inputs; places from here on are the answer's extras.
    items: int = 0
    #: Inputs that failed on their own, by index.
    errors: dict[int, ModelError] = field(default_factory=dict)
    #: Code of the ModelError that the job as a whole failed with; empty if it did not.
    failure: str = ""

    @property
    def answering_model(self) -> str:
        """The name@sha256:digest that the result header carries."""
        if self.model is not None:
            return f"{self.model.name}@sha256:{self.model.digest}"
        wanted = self.sealed.header.model
        return wanted if "@" in wanted else f"{wanted}@sha256:{_NO_DIGEST}"

    def body(self, max_bytes: int) -> Body:
        """Build the result body; one that comes out over the cap is a failure of the job."""
        if self.answer is not None and not self.failure:
            try:
                return results.build(
                    self.answer, self.errors, items=self.items, accept=self.accept, max_bytes=max_bytes
                )
            except ResultTooLarge as error:
                self.fail(error)
        return results.failed(self.failure)

    def fail(self, error: ModelError) -> None:
        """Note that the job failed as a whole; of the error, whose traceback holds plaintext, keep the code only."""
        self.failure = error.code

    def fail_place(self, place: int, error: ModelError) -> None:
        """Note that what stands at a place failed: an input fails alone, one of the answer's extras fails the job."""
        if place < self.items:
            self.errors[place] = error
        else:
            self.fail(error)

    def wipe(self) -> None:
        """Zero the answer."""
        if self.answer is not None:
            self.answer.wipe()


class Row(NamedTuple):
    """One input on its way through a forward pass."""

    batch: Batch
    job: Job
    #: The job's, which takes what the model computes.
    answer: Answer
    #: Index among the job's inputs, or behind them among the answer's extras.
    place: int
    ids: Ids

    @property
    def company(self) -> str:
        """Whose rows may share a token batch with it: those of its exclusive tenant, or, empty, all that are shared."""
        return self.job.sealed.header.tenant if self.batch.exclusive else ""

    def __repr__(self) -> str:
        return f"Row(place={self.place}, {len(self.ids)} ids)"


@dataclass(slots=True, eq=False)
class Batch:
    """One job batch of the intake, answered as a whole.

    Args:
        blobs: the sealed jobs, views into the received frame.
        reply: takes one outcome per job, in order; called once.
        exclusive: whether no two tenants' rows of it, or of it and another, may share a token batch.
    """

    blobs: list[memoryview]
    reply: Callable[[list[Served | MrgcError]], None] = field(repr=False)
    exclusive: bool = False
    #: One per blob, in order, once the batch was opened: a job that is to be sealed, or why there is none.
    jobs: list[Job | MrgcError] = field(default_factory=list)
    #: Rows that have not come back from the forward stage.
    pending_rows: int = 0
