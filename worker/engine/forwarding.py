"""Second stage: token batches through their models, each row's outcome into its job.

A model on a device of its own queues has up to IN_FLIGHT batches between launch and collect: while one is read back,
the next computes, and its successor is copied in. Any other model is run one batch at a time.

May import: the standard library, numpy, mrgc.errors, worker.engine, worker.models.base, worker.models.overlap. Called
by worker.engine.pipeline.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrgc.errors import DeviceOutOfMemory, ModelError
from worker.models.overlap import Overlapping

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.engine.inbox import Taken
    from worker.engine.jobs import Batch, Row
    from worker.engine.scrubbing import Scrubber
    from worker.models.base import Model, Outputs
    from worker.models.overlap import Flight

#: One batch computes while another waits behind it, so the device never waits for the host. A third would only add to
#: the time that the first one takes.
IN_FLIGHT: Final = 2


class _Launched(NamedTuple):
    flight: Flight
    rows: Sequence[Row]


class Forwarder:
    """Runs token batches; used by one thread.

    Args:
        scrubber: is told whose rows are run, and scrubs between companies and after errors.
    """

    def __init__(self, scrubber: Scrubber) -> None:
        self._scrubber = scrubber
        self._launched: deque[_Launched] = deque()

    @property
    def is_waiting(self) -> bool:
        """Whether batches are in flight."""
        return bool(self._launched)

    def run(self, taken: Taken) -> list[Batch]:
        """Run or launch one token batch and zero its ids; see `forward`.

        Returns:
            The job batches of which no row is left.
        """
        finished: list[Batch] = []
        policy = self._scrubber.policy
        if policy.is_due_before(taken.company):
            finished += self.collect_all()
            self._scrubber.scrub()
        policy.note_run(taken.company)
        if isinstance(taken.model, Overlapping):
            if len(self._launched) == IN_FLIGHT:
                finished += self.collect()
            if self._launch(taken.model, taken.rows):
                return finished
        # Those in flight were launched before; results leave a device in the order of the launches.
        finished += self.collect_all()
        return finished + forward(taken.model, taken.rows, on_misfit=self._scrubber.scrub)

    def collect(self) -> list[Batch]:
        """Wait for the batch that was launched first; return the job batches of which no row is left."""
        launched = self._launched.popleft()
        _put(launched.rows, launched.flight.collect())
        return _finished(launched.rows)

    def collect_all(self) -> list[Batch]:
        """Wait for everything in flight."""
        finished: list[Batch] = []
        while self._launched:
            finished += self.collect()
        return finished

    def _launch(self, model: Overlapping, rows: Sequence[Row]) -> bool:
        try:
            flight = model.launch([row.ids for row in rows])
        except DeviceOutOfMemory:
            return False
        _zero_ids(rows)
        self._launched.append(_Launched(flight, rows))
        return True


def forward(model: Model, rows: Sequence[Row], *, on_misfit: Callable[[], None] = lambda: None) -> list[Batch]:
    """Run one token batch, wait for it, and zero its ids.

    A batch that does not fit the device is run in halves; a row that does not fit alone fails alone.

    Args:
        model: runs it.
        rows: rows of ids.
        on_misfit: called after a batch that did not fit at once.

    Returns:
        The job batches of which no row is left.
    """
    if not _run_whole(model, rows):
        on_misfit()
    _zero_ids(rows)
    return _finished(rows)


def _run_whole(model: Model, rows: Sequence[Row]) -> bool:
    """Run rows, in halves where they do not fit; return whether they fitted at once."""
    try:
        outputs = model.forward([row.ids for row in rows])
    except DeviceOutOfMemory:
        if len(rows) == 1:
            # A new error, because the traceback of this one keeps tensors alive.
            rows[0].job.fail_place(rows[0].place, DeviceOutOfMemory("input does not fit the device alone"))
            return False
    else:
        _put(rows, outputs)
        return True
    # Outside the handler, whose exception keeps the tensors of the failed attempt.
    middle = len(rows) // 2
    _run_whole(model, rows[:middle])
    _run_whole(model, rows[middle:])
    return False


def _put(rows: Sequence[Row], outputs: Outputs) -> None:
    for row, output, is_sound in zip(rows, outputs, _are_finite(outputs), strict=True):
        if is_sound:
            row.answer.put(row.place, output)
        else:
            # Neither JSON nor a tenant has a use for NaN.
            row.job.fail_place(row.place, ModelError("model did not compute finite numbers"))
    for buffer in [outputs] if isinstance(outputs, np.ndarray) else outputs:
        buffer.fill(0)


def _zero_ids(rows: Sequence[Row]) -> None:
    for row in rows:
        row.ids.fill(0)


def _finished(rows: Sequence[Row]) -> list[Batch]:
    finished = []
    for row in rows:
        row.batch.pending_rows -= 1
        if row.batch.pending_rows == 0:
            finished.append(row.batch)
    return finished


def _are_finite(outputs: Outputs) -> NDArray[np.bool_] | list[bool]:
    if isinstance(outputs, np.ndarray):
        finite: NDArray[np.bool_] = np.all(np.isfinite(outputs), axis=1)
        return finite
    return [bool(np.all(np.isfinite(output))) for output in outputs]
