"""Receive → admit → batch → engine → store → ack: the whole way of a sealed job through this process.

This process holds sealed bytes only. Nothing but leases is truth: it may be killed at any instruction, and what it held
comes back when the leases lapse. Every received message leaves in exactly one of four ways: its result is stored and
then it is acknowledged; it is dead-lettered with a reason; it is handed back; or its lease was lost to another host.

May import: the standard library, structlog, mrgc.errors, worker. Called by tasks.intake_step and tests.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

import structlog

from mrgc.errors import Action, ExpiredError, MrgcError, PoisonError, QueueUnavailable
from worker.admission import Admission
from worker.batcher import Batcher, BatchLimits
from worker.dispatch import Dispatcher, DispatchRules
from worker.engine_protocol import Served
from worker.engines import Engines
from worker.holdings import Holdings
from worker.job import Job
from worker.leases import LeaseKeeper
from worker.metrics import Metrics
from worker.notices import Announcer, Notifier
from worker.object_store import ObjectStore
from worker.outages import Outages
from worker.receive_policy import receive_wait_s
from worker.reception import Reception
from worker.registry import Registry
from worker.settings import WorkerSettings
from worker.settle import SettleEvents, Settler
from worker.sources.base import Budget, JobSource, Lease
from worker.suspects import POISON_DEATHS
from worker.threads import SupervisedThreads

#: Longest wait of the receiver at a bound; a settled job wakes it earlier.
BOUND_WAIT_S: Final = 0.05
#: How long threads may take to end after the drain.
STOP_S: Final = 3.0
#: Outcomes that are no verdict on a job.
_TRY_AGAIN: Final = (Action.RETRY, Action.FATAL)

_log = structlog.get_logger()


class Intake:
    """The data plane of one worker process.

    Args:
        settings: of the worker.
        source: where jobs come from.
        registry: who may send what.
        notifier: tells tenants that their jobs have ended; None tells nobody.
    """

    def __init__(
        self, settings: WorkerSettings, *, source: JobSource, registry: Registry, notifier: Notifier | None = None
    ) -> None:
        self.metrics = Metrics()
        self._settings = settings
        self._source = source
        self._registry = registry
        # A plain flag, because a signal handler sets it: an Event's lock may be held by the code it interrupted.
        self._draining = False
        self._outages = Outages()
        self._holdings = Holdings(max_jobs=settings.max_inflight_jobs, max_bytes=settings.max_inflight_bytes)
        self._announcer = Announcer(notifier, count=lambda outcome, n: self.metrics.notices.labels(outcome).inc(n))
        store = ObjectStore(s3_endpoint=settings.s3_endpoint)
        self._settler = Settler(source, store, self._settle_events(), self._announcer)
        self._dispatcher = Dispatcher(self._make_batcher(), self._dispatch_rules())
        self._engines = Engines(settings.engines, self)
        self._reception = Reception(
            Admission(settings.results_url, settings.max_body_bytes, settings.max_batch_bytes),
            registry,
            self._settler,
            capacity=lambda: self._engines.capacity(max_body_bytes=settings.max_body_bytes),
            admitted=self._dispatcher.add,
        )
        self._keeper = LeaseKeeper(
            source, holdings=self._holdings, outages=self._outages, registry=registry, lease_s=settings.lease_s
        )
        self._threads = SupervisedThreads(died=lambda name: self.metrics.threads_replaced.labels(name).inc())

    # --- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all threads and return."""
        self._dispatcher.use(self._engines.links)
        self._threads.start(
            {
                "settle": self._settler.run,
                "dispatch": self._dispatcher.run,
                **self._engines.loops,
                "leases": lambda stop: self._keeper.run(stop, budget=self._budget, take=self._take),
                **self._source.loops,
                "receive": self._receive,
            }
        )

    def stop_receiving(self) -> None:
        """Take no more messages; returns at once. What is held goes on."""
        self._draining = True

    def drain(self, *, within_s: float) -> None:
        """Finish what is held, hand back the rest, and end all threads.

        Args:
            within_s: how long to finish; 0 hands everything back at once.
        """
        self.stop_receiving()
        self._threads.tell_to_stop("receive", *self._source.loops)
        deadline_s = time.monotonic() + within_s
        while time.monotonic() < deadline_s and not self._holdings.wait_empty(BOUND_WAIT_S):
            # Whoever waits out an outage is served sooner by another host.
            self._hand_back(self._dispatcher.take_waiting_retries())
        left = self._threads.stop_all(within_s=STOP_S)
        self._hand_back_leases(self._holdings.leases())
        self._announcer.close()
        self._source.close()
        _log.info("intake stopped", count=len(left))

    def readiness(self) -> list[str]:
        """Return the codes of what keeps jobs from being served; none when they are."""
        draining = ["draining"] if self._draining else []
        return [*self._outages.codes(), *draining, *self._engines.reasons]

    def measure(self) -> None:
        """Bring the gauges up to date."""
        self.metrics.ready.set(not self.readiness())
        self.metrics.held_jobs.set(len(self._holdings))
        self.metrics.held_bytes.set(self._holdings.bytes)
        self.metrics.unstored_bytes.set(self._settler.unstored_bytes)
        self._engines.measure(self.metrics)

    # --- receive → admit -----------------------------------------------------------------------------------------

    def _receive(self, stop: threading.Event) -> None:
        while not stop.is_set():
            budget = self._budget()
            wait_s = receive_wait_s(budget, held_jobs=len(self._holdings), batch_jobs=self._settings.max_batch_jobs)
            leases: Sequence[Lease] = ()
            if wait_s is not None:
                try:
                    leases = self._source.receive(budget, wait_s=wait_s)
                except QueueUnavailable as err:
                    self._note_outage(err)
                    continue
                self._outages.received()
                self._take(leases)
            if not leases and not wait_s:
                self._holdings.wait_change(BOUND_WAIT_S)

    def _budget(self) -> Budget:
        gate = self._outages.gate()
        probing = self._settings.max_batch_jobs if gate.is_probing else self._settings.max_inflight_jobs
        is_open = gate.is_open and self._engines.can_serve and not self._draining
        quotas = self._registry.quotas if is_open else {}
        if gate.closed_tenants:
            quotas = {tenant: 0 if tenant in gate.closed_tenants else quota for tenant, quota in quotas.items()}
        return self._holdings.budget(quotas, max_jobs=probing if any(quotas.values()) else 0)

    def _take(self, leases: Sequence[Lease]) -> None:
        if self._draining:
            self._hand_back_leases(leases)
            return
        for tenant, count in Counter(lease.tenant for lease in leases).items():
            self.metrics.received.labels(tenant).inc(count)
        now_s = time.time()
        for lease in leases:
            self.metrics.queue_seconds.observe(max(0.0, now_s - lease.sent_s))
        self._reception.take(self._holdings.add(leases))

    # --- engine → store → ack; called by the links -----------------------------------------------------------------

    def connected(self) -> None:
        """Look for work for an engine that has just come."""
        self._dispatcher.wake()

    def answered(self, jobs: Sequence[Job], outcomes: Sequence[Served | MrgcError]) -> None:
        """Settle one batch, each job by its own outcome."""
        pairs = list(zip(jobs, outcomes, strict=True))
        served = [(job, outcome) for job, outcome in pairs if isinstance(outcome, Served)]
        self._settler.store(served)
        for (tenant, status), count in Counter((job.tenant, outcome.status) for job, outcome in served).items():
            self.metrics.served.labels(tenant, status).inc(count)
        for job, error in pairs:
            if isinstance(error, Served):
                continue
            if error.action in _TRY_AGAIN:
                self._retry(job, error)
            else:
                # An engine seals every failure of a job that verified, so a bare code means that it did not verify.
                self._settler.dead_letter(job.lease, code=error.code, hint_url=job.hint_url)
        # Last, so that one job that fails for ever does not close the intake while its batch mates are served.
        for tenant in {job.tenant for job, it in pairs if isinstance(it, Served) or it.action not in _TRY_AGAIN}:
            self._outages.served(tenant=tenant)
        self._dispatcher.wake()

    def died(self, batches: Sequence[Sequence[Job]]) -> None:
        """Rerun what was in a dead engine; count the death only against a job that was alone in it."""
        if not batches:
            return
        self.metrics.engine_deaths.inc()
        _log.warning("engine died with jobs in it", batches=len(batches), jobs=sum(map(len, batches)))
        alone = self._dispatcher.engine_died(batches)
        if alone is not None:
            self._settler.count_death(alone, lambda: self._judge_suspect(alone))

    def _judge_suspect(self, job: Job) -> None:
        if job.lease.deaths >= POISON_DEATHS:
            self._settler.dead_letter(job.lease, code=PoisonError.code, hint_url=job.hint_url)
        else:
            self._dispatcher.add([job])

    def _retry(self, job: Job, error: MrgcError) -> None:
        self.metrics.retries.labels(error.code).inc()
        self._note_outage(error, tenant=job.tenant)
        self._dispatcher.retry_later(job)

    # --- shared steps ----------------------------------------------------------------------------------------------

    def _hand_back(self, jobs: Sequence[Job]) -> None:
        self._hand_back_leases([job.lease for job in jobs])

    def _hand_back_leases(self, leases: Sequence[Lease]) -> None:
        if not leases:
            return
        try:
            self._source.release(leases)
        except QueueUnavailable as err:
            _log.warning("leases left to lapse", count=len(leases), exc_info=err)
        self._holdings.remove(leases)

    def _note_outage(self, error: MrgcError, *, tenant: str | None = None) -> None:
        if self._outages.failed(error, tenant=tenant):
            _log.warning("outage begins", tenant=tenant, exc_info=error)

    def _settled(self, leases: Sequence[Lease]) -> None:
        for held_s in self._holdings.remove(leases):
            self.metrics.held_seconds.observe(held_s)

    def _dead_lettered(self, lease: Lease, code: str) -> None:
        self.metrics.dead_letters.labels(lease.tenant, code).inc()
        _log.warning("dead letter", tenant=lease.tenant, message_id=lease.message_id, code=code, attempts=lease.deaths)

    def _make_batcher(self) -> Batcher[Job]:
        settings = self._settings
        limits = BatchLimits(settings.max_batch_jobs, settings.max_batch_bytes, settings.max_wait_ms / 1_000)
        return Batcher(limits, weight_of=self._weight_of)

    def _weight_of(self, tenant: str) -> int:
        entry = self._registry.get(tenant)
        # A tenant that was taken out of the registry keeps a minimal share until its last jobs are gone.
        return entry.weight if entry is not None else 1

    def _dispatch_rules(self) -> DispatchRules:
        return DispatchRules(
            is_held=lambda job: self._holdings.holds(job.lease),
            may_dispatch=lambda: self._settler.unstored_bytes < self._settings.max_inflight_bytes,
            expired=lambda job: self._settler.dead_letter(job.lease, code=ExpiredError.code, hint_url=job.hint_url),
            submitted=lambda batch: self.metrics.batch_jobs.observe(len(batch)),
        )

    def _settle_events(self) -> SettleEvents:
        return SettleEvents(
            settled=self._settled,
            stored=self._outages.stored,
            delayed=lambda lease, error: self._note_outage(error, tenant=lease.tenant),
            dead_lettered=self._dead_lettered,
        )
