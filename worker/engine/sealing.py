"""Third stage: finished jobs in, sealed results out.

Seals in as few requests as frames allow. Inference is dear, so this stage waits out a restart of the enclave for some
seconds; the tickets of the jobs are stale after it, and each such job is opened once more for a new one.

May import: the standard library, mrgc, worker.engine, worker.engine_protocol. Called by worker.engine.pipeline.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from mrgc.errors import EnclaveBusy, EnclaveUnreachable, MrgcError, TicketError
from mrgc.wire.enclave_protocol import MAX_JOBS, Opened, SealRequest
from mrgc.wire.sealed import MAX_HEADER_BYTES, TAG_BYTES
from worker.engine.jobs import Job
from worker.engine.opening import MAX_ANSWER_BYTES, wipe
from worker.engine_protocol import Served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeVar

    from worker.engine.enclave_client import EnclaveClient
    from worker.engine.jobs import Batch
    from worker.engine.results import Body

    T = TypeVar("T")

#: How long finished jobs wait for an enclave that is away; a restart takes about two seconds.
PATIENCE_S: Final = 10.0
#: What a sealed result is longer than its body, at most; 12 is the fixed prefix.
_OVERHEAD_BYTES: Final = 12 + MAX_HEADER_BYTES + TAG_BYTES


class _Finished(NamedTuple):
    job: Job
    body: Body

    def request(self) -> SealRequest:
        job, body = self.job, self.body
        sealed = job.sealed
        return SealRequest(
            sealed.request, job.ticket, body.status, job.answering_model, body.type, sealed.aad, body.data
        )


class Sealer:
    """Seals job batches.

    Args:
        client: this stage's own connection to the enclave.
        max_body_bytes: the deployment's cap on results.
        clock: monotonic seconds.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        client: EnclaveClient,
        *,
        max_body_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.client = client
        self._max_body_bytes = max_body_bytes
        self._clock = clock
        self._sleep = sleep

    def seal(self, batch: Batch) -> list[Served | MrgcError]:
        """Seal what can be sealed and zero the bodies.

        Returns:
            One outcome per job of the batch, in order, all of which fit one frame.
        """
        jobs = [job for job in batch.jobs if isinstance(job, Job)]
        sealed = (outcome for part in self._parts(jobs) for outcome in self._seal(part))
        return _fitting([next(sealed) if isinstance(job, Job) else job for job in batch.jobs])

    def _parts(self, jobs: Sequence[Job]) -> Iterator[list[_Finished]]:
        """Build bodies part by part, each part small enough for one request and its answer."""
        part: list[_Finished] = []
        room = MAX_ANSWER_BYTES
        for job in jobs:
            finished = _Finished(job, job.body(self._max_body_bytes))
            job.wipe()
            needed = len(finished.body.data) + _OVERHEAD_BYTES
            if part and (needed > room or len(part) == MAX_JOBS):
                yield part
                part, room = [], MAX_ANSWER_BYTES
            part.append(finished)
            room -= needed
        if part:
            yield part

    def _seal(self, part: list[_Finished]) -> list[Served | MrgcError]:
        try:
            outcomes = self._ask(part)
            stale = [index for index, outcome in enumerate(outcomes) if isinstance(outcome, TicketError)]
            if stale:
                self._renew_tickets([part[index].job for index in stale])
                for index, outcome in zip(stale, self._ask([part[index] for index in stale]), strict=True):
                    outcomes[index] = outcome
        except MrgcError as error:
            outcomes = [error] * len(part)
        finally:
            for finished in part:
                wipe(finished.body.data)
        return outcomes

    def _ask(self, part: Sequence[_Finished]) -> list[Served | MrgcError]:
        requests = [finished.request() for finished in part]
        answers = self._patiently(lambda: self.client.seal_batch(requests))
        return [
            answer if isinstance(answer, MrgcError) else Served(finished.body.status, answer)
            for finished, answer in zip(part, answers, strict=True)
        ]

    def _renew_tickets(self, jobs: Sequence[Job]) -> None:
        """Open jobs again, for the tickets only. A job that no longer opens keeps its stale ticket."""
        blobs = [job.blob for job in jobs]
        for job, outcome in zip(jobs, self._patiently(lambda: self.client.open_batch(blobs)), strict=True):
            if isinstance(outcome, Opened):
                job.ticket = outcome.ticket
                wipe(outcome.plaintext)

    def _patiently(self, call: Callable[[], T]) -> T:
        end_s = self._clock() + PATIENCE_S
        while True:
            try:
                return call()
            except EnclaveUnreachable:
                pause_s = self.client.pause_s()
                if self._clock() + pause_s >= end_s:
                    raise
                self._sleep(pause_s)


def _fitting(outcomes: list[Served | MrgcError]) -> list[Served | MrgcError]:
    """Send results that do not fit the answer's frame back to the queue: alone, each of them fits."""
    room = MAX_ANSWER_BYTES
    fitting: list[Served | MrgcError] = []
    for outcome in outcomes:
        if isinstance(outcome, Served):
            if len(outcome.result) > room:
                fitting.append(EnclaveBusy("results do not fit one answer"))
                continue
            room -= len(outcome.result)
        fitting.append(outcome)
    return fitting
