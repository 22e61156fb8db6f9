"""Second stage: one token batch through a model, each row's outcome into its job.

May import: the standard library, numpy, mrgc.errors, worker.engine.jobs, worker.models.base. Called by
worker.engine.pipeline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mrgc.errors import DeviceOutOfMemory, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.engine.jobs import Batch, Row
    from worker.models.base import Model, Outputs


def forward(model: Model, rows: Sequence[Row]) -> list[Batch]:
    """Run rows and zero their ids.

    A batch that does not fit the device is run in halves; a row that does not fit alone fails alone.

    Returns:
        The job batches of which no row is left.
    """
    _run(model, rows)
    finished = []
    for row in rows:
        row.ids.fill(0)
        row.batch.pending_rows -= 1
        if row.batch.pending_rows == 0:
            finished.append(row.batch)
    return finished


def _run(model: Model, rows: Sequence[Row]) -> None:
    try:
        outputs = model.forward([row.ids for row in rows])
    except DeviceOutOfMemory:
        if len(rows) == 1:
            # A new error, because the traceback of this one keeps tensors alive.
            rows[0].job.fail_place(rows[0].place, DeviceOutOfMemory("input does not fit the device alone"))
            return
    else:
        _put(rows, outputs)
        return
    # Outside the handler, whose exception keeps the tensors of the failed attempt.
    middle = len(rows) // 2
    _run(model, rows[:middle])
    _run(model, rows[middle:])


def _put(rows: Sequence[Row], outputs: Outputs) -> None:
    for row, output, is_sound in zip(rows, outputs, _are_finite(outputs), strict=True):
        if is_sound:
            row.answer.put(row.place, output)
        else:
            # Neither JSON nor a tenant has a use for NaN.
            row.job.fail_place(row.place, ModelError("model did not compute finite numbers"))
    for buffer in [outputs] if isinstance(outputs, np.ndarray) else outputs:
        buffer.fill(0)


def _are_finite(outputs: Outputs) -> NDArray[np.bool_] | list[bool]:
    if isinstance(outputs, np.ndarray):
        finite: NDArray[np.bool_] = np.all(np.isfinite(outputs), axis=1)
        return finite
    return [bool(np.all(np.isfinite(output))) for output in outputs]
