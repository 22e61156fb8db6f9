"""A tenant with a long queue beside one with a single job, on a real queue and through the real intake."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from tests.intake.conftest import Host, StartHost
from tests.intake.peer_engine import Outcomes, PeerEngine, serve_all
from tests.intake.sealing import seal, stored
from tests.waiting import until
from worker.engine_link import SLOTS

QUEUED = 100_000
#: Jobs that are sealed; the queue holds each of them many times.
SEALED = 500
#: Batches of others between a job's arrival and its own.
MOST_BATCHES = 2
INFLIGHT_JOBS = 1_024
BATCH_JOBS = 64


class SteppedEngine:
    """Answers batches in the order in which they came, one for each step."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        #: Batches that came, in order.
        self.batches: list[list[bytes]] = []
        self._allowed = 0

    def __call__(self, jobs: list[bytes]) -> Outcomes:
        with self._changed:
            number = len(self.batches)
            self.batches.append(jobs)
            self._changed.wait_for(lambda: number < self._allowed, timeout=30)
        return serve_all(jobs)

    @property
    def answered(self) -> int:
        """Jobs in the batches that have been answered."""
        return sum(map(len, self.batches[: self._allowed]))

    def allow(self, batches: int) -> None:
        """Let so many more batches be answered."""
        with self._changed:
            self._allowed += batches
            self._changed.notify_all()


def test_a_long_queue_delays_another_tenants_job_by_two_batches_at_most(
    start_host: StartHost, engine: PeerEngine
) -> None:
    """With 100,000 jobs queued and all bounds reached, at most two batches enter the engine before another's job."""
    engine.answer = steps = SteppedEngine()
    host = start_host(lease_s=30.0, max_inflight_jobs=INFLIGHT_JOBS, max_batch_jobs=BATCH_JOBS)
    queue(host, [seal() for _ in range(SEALED)])
    for _ in range(3):
        # As in the midst of it: the intake is full, and so is the engine.
        one_batch_later(host, steps, sent=QUEUED)
    entered = len(steps.batches)
    urgent = seal("globex")
    host.send(urgent)
    while not any(urgent in batch for batch in steps.batches):
        assert len(steps.batches) - entered <= MOST_BATCHES
        one_batch_later(host, steps, sent=QUEUED + 1)
    mixed = next(batch for batch in steps.batches if urgent in batch)
    assert len(mixed) == BATCH_JOBS
    assert steps.batches.index(mixed) - entered <= MOST_BATCHES
    steps.allow(QUEUED)
    until(lambda: stored(host.results, urgent), within_s=10, what="it has its result")


def queue(host: Host, jobs: Sequence[bytes]) -> None:
    """Put a long queue before a host at once."""
    for _ in range(QUEUED // len(jobs)):
        with host.client.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.xadd("q:acme", {"job": job})
            pipe.execute()


def one_batch_later(host: Host, steps: SteppedEngine, *, sent: int) -> None:
    """Answer one batch, then wait until the engine has the next one and the intake has no room for another batch."""
    entered = max(len(steps.batches), SLOTS)
    steps.allow(1)
    until(lambda: len(steps.batches) > entered, within_s=10, what="another batch is in the engine")
    until(lambda: sent - queued(host) == steps.answered, within_s=10, what="what was answered is acknowledged")
    until(lambda: leased(host) > INFLIGHT_JOBS - BATCH_JOBS, within_s=10, what="the intake is full")
    assert leased(host) <= INFLIGHT_JOBS


def leased(host: Host) -> int:
    """Messages of both tenants that the host holds."""
    return host.leased() + host.leased("globex")


def queued(host: Host) -> int:
    """Messages of both tenants that are not acknowledged."""
    return int(host.client.xlen("q:acme") + host.client.xlen("q:globex"))
