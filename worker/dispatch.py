"""Which batch goes to which engine now: batcher, retries and suspects on one side, engine links on the other.

One thread runs the loop; the links, the receiver and the settler hand jobs in from theirs. Nothing here does I/O: a
link only queues what it is given.

May import: the standard library, mrgc.errors, worker. Called by the intake.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from worker.batcher import Batcher
from worker.engine_link import EngineLink
from worker.job import Job
from worker.suspects import Suspects

#: The loop looks at expiries and links at least this often.
IDLE_WAIT_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class DispatchRules:
    """What the loop asks of the rest of the intake. None of these may block."""

    #: Whether a job's lease is still held; the others are dropped on their way out.
    is_held: Callable[[Job], bool]
    #: Whether results are being stored fast enough to make more of them.
    may_dispatch: Callable[[], bool]
    #: Takes a job that expired while it waited.
    expired: Callable[[Job], None]
    #: Notes the size of a batch that was submitted.
    submitted: Callable[[Sequence[Job]], None]


class Dispatcher:
    """Jobs on their way to the engines.

    Args:
        batcher: the policy that forms batches.
        rules: what the loop asks of the rest of the intake.
    """

    def __init__(self, batcher: Batcher[Job], rules: DispatchRules) -> None:
        self._batcher = batcher
        self._rules = rules
        self._suspects: Suspects[Job] = Suspects()
        #: (monotonic second, tie-breaker, job): retries that wait out their backoff.
        self._later: list[tuple[float, int, Job]] = []
        self._ties = itertools.count()
        self._links: Sequence[EngineLink] = ()
        #: Links that run a suspect batch, which must be alone.
        self._alone: set[EngineLink] = set()
        self._changed = threading.Condition()

    def use(self, links: Sequence[EngineLink]) -> None:
        """Set the engines; once, before the loop starts."""
        self._links = links

    def add(self, jobs: Sequence[Job]) -> None:
        """Queue admitted jobs; one that was alone at an engine death before, on whichever host, runs alone."""
        now_s = time.monotonic()
        with self._changed:
            for job in jobs:
                if job.lease.deaths:
                    self._suspects.add(job)
                else:
                    self._batcher.add(job, now_s=now_s)
            self._changed.notify()

    def retry_later(self, job: Job) -> None:
        """Queue a job again after its backoff."""
        with self._changed:
            due_s = time.monotonic() + job.backoff.next_s()
            heapq.heappush(self._later, (due_s, next(self._ties), job))
            self._changed.notify()

    def engine_died(self, batches: Sequence[Sequence[Job]]) -> Job | None:
        """Queue what was in a dead engine to be rerun in halves.

        Returns:
            The job that was alone in it, which is not queued: the caller counts the death and decides.
        """
        with self._changed:
            alone = self._suspects.add_death(batches)
            self._changed.notify()
            return alone

    def wake(self) -> None:
        """Look again: an engine has room, or the store has caught up."""
        with self._changed:
            self._changed.notify()

    def take_waiting_retries(self) -> list[Job]:
        """Take out the jobs that wait out an outage, for a hand-back."""
        with self._changed:
            later = [job for _, _, job in self._later]
            self._later.clear()
            return later

    def run(self, stop: threading.Event) -> None:
        """Submit batches until `stop` is set."""
        while not stop.is_set():
            with self._changed:
                self._changed.wait(self._submit_all())

    def _submit_all(self) -> float:
        """Submit what can be submitted now; returns how long the loop may sleep."""
        now_s = time.monotonic()
        self._queue_due_retries(now_s)
        for job in self._batcher.drop_expired(time.time()):
            self._rules.expired(job)
        self._alone = {link for link in self._alone if link.inflight}
        while self._rules.may_dispatch() and (link := self._free_link()) is not None:
            batch = self._next_batch(link, now_s)
            if not batch:
                break
            self._submit(link, batch)
        return self._sleep_s(now_s)

    def _free_link(self) -> EngineLink | None:
        """Return the engine with the least to do that takes a batch now."""
        free = [link for link in self._links if link.has_room and link not in self._alone]
        if self._suspects and free:
            # One engine is kept for suspects: when it has run empty it gets the next, and until then nothing more.
            kept = min(free, key=lambda link: link.inflight)
            if kept.inflight:
                free.remove(kept)
        return min(free, key=lambda link: link.inflight, default=None)

    def _next_batch(self, link: EngineLink, now_s: float) -> list[Job]:
        idle = link.inflight == 0
        while idle and (group := self._suspects.next()) is not None:
            if held := self._still_held(group):
                self._alone.add(link)
                return held
        while batch := self._batcher.next_batch(now_s=now_s, idle=idle):
            if held := self._still_held(batch):
                return held
        return []

    def _still_held(self, batch: list[Job]) -> list[Job]:
        return [job for job in batch if self._rules.is_held(job)]

    def _submit(self, link: EngineLink, batch: list[Job]) -> None:
        if link.submit(batch):
            self._rules.submitted(batch)
            return
        # The engine went away between the look and the submission; the jobs were never in it.
        for job in batch:
            heapq.heappush(self._later, (time.monotonic(), next(self._ties), job))

    def _queue_due_retries(self, now_s: float) -> None:
        while self._later and self._later[0][0] <= now_s:
            _, _, job = heapq.heappop(self._later)
            if job.lease.deaths:
                self._suspects.add(job)
            else:
                self._batcher.add(job, now_s=now_s)

    def _sleep_s(self, now_s: float) -> float:
        sleep_s = IDLE_WAIT_S
        if self._later:
            sleep_s = min(sleep_s, self._later[0][0] - now_s)
        link = self._free_link()
        due_s = self._batcher.due_in_s(now_s=now_s, idle=link.inflight == 0) if link is not None else None
        if due_s is not None and self._rules.may_dispatch():
            sleep_s = min(sleep_s, due_s)
        return max(sleep_s, 0.0)
