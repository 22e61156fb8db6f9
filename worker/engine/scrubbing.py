"""When, and how, everything that finished batches left behind is overwritten.

What a batch holds in buffers of ours is zeroed with the batch. Beyond that a device keeps intermediate results in
memory that its allocator will use again, and Python may keep objects in reference cycles. Both go in a full scrub:
before rows of another company than the last ones are run, where one of the two is an exclusive tenant's; once nothing
has been run for IDLE_S; after an error; and at the end.

May import: the standard library, structlog, worker.models.overlap. Called by worker.engine.forwarding and
worker.engine.pipeline.
"""

from __future__ import annotations

import gc
import threading
import time
from typing import TYPE_CHECKING, Final

import structlog

from worker.models.overlap import Overlapping

if TYPE_CHECKING:
    from collections.abc import Iterable

    from worker.engine.counters import Counters
    from worker.models.base import Model

#: A busy engine's pauses are shorter: its next batch is at hand, or comes with the intake's next answer.
IDLE_S: Final = 0.05
#: How long the last scrub of a process that has to end may take; a faulted device may never answer.
LAST_S: Final = 1.0


class ScrubPolicy:
    """Tells when a scrub is due. Pure: no clock, no device."""

    def __init__(self) -> None:
        #: Whose rows were run since the last scrub; None if nobody's.
        self._company: str | None = None

    def is_due_before(self, company: str) -> bool:
        """Tell whether rows of this company (`jobs.Row.company`) may not follow those that were run last."""
        return self._company is not None and self._company != company

    def note_run(self, company: str) -> None:
        """Note that rows of this company are about to be run."""
        self._company = company

    def note_scrub(self) -> None:
        """Note that nothing is left."""
        self._company = None

    @property
    def patience_s(self) -> float | None:
        """How long the device may stay idle before a scrub is due; None if nothing is left to scrub."""
        return None if self._company is None else IDLE_S


class Scrubber:
    """Scrubs the models' devices and this process.

    Args:
        models: all that may have been run.
        counters: the engine's; get `scrubs` and `scrub_ms`.
    """

    def __init__(self, models: Iterable[Model], counters: Counters) -> None:
        self._devices = [model for model in models if isinstance(model, Overlapping)]
        self.counters = counters
        self.policy = ScrubPolicy()

    def scrub(self) -> None:
        """Overwrite what is left. No batch may be in flight."""
        start_s = time.perf_counter()
        for device in self._devices:
            device.scrub()
        # Freed memory is overwritten by the allocator (worker.engine.hardening); this frees what only cycles keep.
        gc.collect()
        self.policy.note_scrub()
        self.counters.add(scrubs=1, scrub_ms=(time.perf_counter() - start_s) * 1_000)

    def scrub_for_the_last_time(self) -> None:
        """Scrub on the way out, also after a fault; gives up after LAST_S and never raises."""
        thread = threading.Thread(target=self._attempt, name="last scrub", daemon=True)
        thread.start()
        thread.join(LAST_S)

    def _attempt(self) -> None:
        try:
            self.scrub()
        except Exception as error:  # noqa: BLE001  the process is ending; the fault that ends it is logged by its stage
            structlog.get_logger().warning("last scrub failed", exc_info=error)
