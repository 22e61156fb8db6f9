"""What the receivers have leased and the intake has not taken yet, and how much more they may lease. No I/O.

Nobody polls unless the intake has asked within the last second: a host that cannot serve leaves messages to others.
What is asked for, under way and waiting here never exceeds what the intake had room for when it last asked.

May import: the standard library, mrgc.errors, worker.sources. Called by worker.sources.sqs; safe between threads.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from mrgc.errors import QueueUnavailable
from worker.sources.base import Budget, Lease
from worker.sources.sqs_layout import MAX_CALL_BYTES, MAX_ENTRIES
from worker.sources.sqs_polling import Poll, PollPlan

#: How long the intake's last question stands.
ASKED_S: Final = 1.0
#: How long a receiver without work waits before it looks whether it must stop.
IDLE_WAIT_S: Final = 0.25
_NOTHING: Final = Budget(0, 0, {})


class Inbox:
    """Leases between the receivers and the intake.

    Args:
        plan: whose turn it is.
        is_shared: whether all tenants' messages come from one queue.
        clock: monotonic seconds.
    """

    def __init__(self, plan: PollPlan, *, is_shared: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._plan = plan
        self._is_shared = is_shared
        self._clock = clock
        self._changed = threading.Condition()
        self._leases: dict[tuple[str, str], Lease] = {}
        self._waiting: Counter[str] = Counter()
        #: Messages that calls under way may bring, by Poll.tenant.
        self._asked: Counter[str] = Counter()
        self._budget = _NOTHING
        self._asked_s = float("-inf")
        self._failure: QueueUnavailable | None = None
        #: Calls that ended, well or not.
        self._answers = 0

    # --- the intake's side ------------------------------------------------------------------------------------------

    def take(self, budget: Budget, *, wait_s: float) -> list[Lease]:
        """Take what fits the budget, waiting for the first.

        Raises:
            QueueUnavailable: the last call of a receiver failed, and nothing is here.
        """
        with self._changed:
            self._budget, self._asked_s = budget, self._clock()
            self._plan.follow([""] if self._is_shared else budget.tenants)
            self._changed.notify_all()
            taken = self._fitting()
            if not taken and wait_s > 0:
                seen = self._answers
                self._changed.wait_for(lambda: self._leases or (self._failure and self._answers > seen), wait_s)
                taken = self._fitting()
            if not taken and self._failure is not None:
                raise QueueUnavailable(*self._failure.args)
            return taken

    def leases(self) -> list[Lease]:
        """Return what is here."""
        with self._changed:
            return list(self._leases.values())

    def take_unwanted(self) -> list[Lease]:
        """Take out leases of tenants whose queues are not asked any more, for a hand-back."""
        with self._changed:
            unwanted = [lease for lease in self._leases.values() if not self._plan.follows(self._queue_of(lease))]
            return [self._pop(lease) for lease in unwanted]

    def remove(self, leases: Sequence[Lease]) -> None:
        """Let go of leases that are ours no longer."""
        with self._changed:
            for lease in leases:
                self._pop(lease)

    def close(self) -> list[Lease]:
        """Ask for nothing more and take everything out, for a hand-back."""
        with self._changed:
            self._budget = _NOTHING
            return [self._pop(lease) for lease in list(self._leases.values())]

    def _fitting(self) -> list[Lease]:
        jobs, room_bytes, tenants = self._budget.jobs, self._budget.bytes, dict(self._budget.tenants)
        taken = []
        for lease in list(self._leases.values()):
            if jobs < 1 or room_bytes < MAX_CALL_BYTES or self._quota(lease.tenant, tenants) < 1:
                continue
            taken.append(self._pop(lease))
            jobs, room_bytes = jobs - 1, room_bytes - MAX_CALL_BYTES
            if lease.tenant in tenants:
                tenants[lease.tenant] -= 1
        self._budget = Budget(jobs, room_bytes, tenants)
        return taken

    # --- the receivers' side ----------------------------------------------------------------------------------------

    def next_poll(self) -> Poll | None:
        """Choose a call to make, or wait a moment and return none."""
        with self._changed:
            now_s = self._clock()
            poll = None
            if now_s - self._asked_s < ASKED_S:
                poll = self._plan.next(self._room(), room_of=self._room_of, now_s=now_s)
            if poll is None:
                self._changed.wait(min(IDLE_WAIT_S, self._plan.due_in_s(now_s)))
            else:
                self._asked[poll.tenant] += poll.count
            return poll

    def put(self, poll: Poll, leases: Sequence[Lease]) -> list[Lease]:
        """Add what a call brought.

        Returns:
            Leases of tenants that nothing may be received from now; only a shared queue brings such.
        """
        with self._changed:
            self._failure = None
            self._answers += 1
            self._asked[poll.tenant] -= poll.count
            self._plan.answered(poll, len(leases), now_s=self._clock())
            quotas = self._budget.tenants
            refused = [lease for lease in leases if self._is_shared and self._quota(lease.tenant, quotas) < 1]
            for lease in leases:
                if lease not in refused:
                    self._waiting[lease.tenant] += lease.key not in self._leases
                    self._leases[lease.key] = lease
            self._changed.notify_all()
            return refused

    def failed(self, poll: Poll, error: QueueUnavailable | None, *, for_long: bool = False) -> None:
        """Note that a call failed; `error` when that is every queue's failure."""
        with self._changed:
            self._failure = error or self._failure
            self._answers += 1
            self._asked[poll.tenant] -= poll.count
            self._plan.failed(poll, for_long=for_long, now_s=self._clock())
            self._changed.notify_all()

    def _queue_of(self, lease: Lease) -> str:
        return "" if self._is_shared else lease.tenant

    def _quota(self, tenant: str, quotas: Mapping[str, int]) -> int:
        # In a queue for all, a message of a tenant without a registry entry is the intake's to refuse.
        return quotas.get(tenant, int(self._is_shared))

    def _room(self) -> int:
        committed = len(self._leases) + self._asked.total()
        return min(self._budget.jobs, self._budget.bytes // MAX_CALL_BYTES) - committed

    def _room_of(self, tenant: str) -> int:
        if self._is_shared:
            return MAX_ENTRIES
        return self._budget.tenants.get(tenant, 0) - self._waiting[tenant] - self._asked[tenant]

    def _pop(self, lease: Lease) -> Lease:
        if self._leases.get(lease.key) is lease:
            del self._leases[lease.key]
            self._waiting[lease.tenant] -= 1
        return lease
