"""Who goes next, how much, and when: pure policy over admitted jobs. No I/O, no thread, the clock is passed in.

Surplus round robin, the form of deficit round robin that needs no look-ahead: every (tenant, model) has a queue and a
credit in bytes; the one with credit is served and pays for each job; when nobody has credit everybody gets the same
number of quanta times its weight. A job batch is of one model, and the queue at the head of the ring chooses which; it
goes to the tail afterwards, so a model waits for at most one batch per queue.

While the engine is busy a batch leaves as soon as there is room for it. An idle engine is worth a short wait, because a
batch of one costs it almost as much as a full one.

May import: the standard library. Called by worker.dispatch.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

#: Credit of one turn at weight 1: a few jobs of ordinary size, so that one batch serves several tenants.
QUANTUM_BYTES: Final = 64 << 10


class Waiting(Protocol):
    """What the batcher must know of a job."""

    @property
    def tenant(self) -> str:
        """Whose job it is."""
        ...

    @property
    def model(self) -> str:
        """Which model it names."""
        ...

    @property
    def cost_bytes(self) -> int:
        """What it takes of a batch's byte budget: the larger of the sealed job and its expected answer."""
        ...

    @property
    def expires(self) -> int:
        """Unix second from which it must not be served."""
        ...


J = TypeVar("J", bound=Waiting)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of one job batch, and how long an idle engine waits for it to fill."""

    jobs: int
    bytes: int
    wait_s: float


@dataclass(slots=True)
class _Flow(Generic[J]):
    """One (tenant, model): its jobs in order of arrival with their arrival times, and its credit."""

    tenant: str
    model: str
    credit_bytes: int
    jobs: deque[tuple[float, J]] = field(default_factory=deque)


@dataclass(slots=True)
class _Load:
    """What waits for one model, to see whether a batch of it would be full."""

    jobs: int = 0
    bytes: int = 0


class Batcher(Generic[J]):
    """Admitted jobs on their way to an engine. Every job that was added leaves exactly once.

    Args:
        limits: of one batch.
        weight_of: a tenant's share against the others; asked at every payment, so a changed registry counts at once.
    """

    def __init__(self, limits: BatchLimits, *, weight_of: Callable[[str], int]) -> None:
        self._limits = limits
        self._weight_of = weight_of
        #: Queues with jobs; the order of the dict is the ring.
        self._ring: dict[tuple[str, str], _Flow[J]] = {}
        #: What a tenant owed when a queue of its ran empty; forgiven when nobody waits.
        self._debts: dict[str, int] = {}
        self._loads: dict[str, _Load] = defaultdict(_Load)
        self._next_expiry: float = float("inf")

    def __len__(self) -> int:
        return sum(load.jobs for load in self._loads.values())

    def add(self, job: J, *, now_s: float) -> None:
        """Queue one job.

        Args:
            job: its cost is within the batch limit.
            now_s: monotonic seconds.

        Raises:
            ValueError: the job can never be in a batch.
        """
        if job.cost_bytes > self._limits.bytes:
            raise ValueError("job is over the batch limit")
        key = job.tenant, job.model
        flow = self._ring.get(key)
        if flow is None:
            flow = self._ring[key] = _Flow(job.tenant, job.model, self._debts.pop(job.tenant, 0))
        flow.jobs.append((now_s, job))
        load = self._loads[job.model]
        load.jobs, load.bytes = load.jobs + 1, load.bytes + job.cost_bytes
        self._next_expiry = min(self._next_expiry, job.expires)

    def next_batch(self, *, now_s: float, idle: bool) -> list[J]:
        """Take the next batch.

        Args:
            now_s: monotonic seconds.
            idle: whether the engine that would get it has nothing to do.

        Returns:
            Jobs of one model within the limits; empty when nothing waits, or when waiting a little longer is better.
        """
        wait_s = self.due_in_s(now_s=now_s, idle=idle)
        if wait_s is None or wait_s > 0:
            return []
        head = next(iter(self._ring.values()))
        batch = self._fill([flow for flow in self._ring.values() if flow.model == head.model])
        if head.jobs:
            self._ring[head.tenant, head.model] = self._ring.pop((head.tenant, head.model))
        return batch

    def due_in_s(self, *, now_s: float, idle: bool) -> float | None:
        """Return how long the next batch should still wait: 0 when it is due, None when nothing waits."""
        if not self._ring:
            return None
        if not idle or any(self._is_full(load) for load in self._loads.values()):
            return 0.0
        oldest_s = min(flow.jobs[0][0] for flow in self._ring.values())
        return max(0.0, oldest_s + self._limits.wait_s - now_s)

    def drop_expired(self, unix_s: float) -> list[J]:
        """Take out the jobs that must not be served any more."""
        if unix_s < self._next_expiry:
            return []
        expired: list[J] = []
        for flow in list(self._ring.values()):
            gone = [job for _, job in flow.jobs if unix_s >= job.expires]
            flow.jobs = deque(entry for entry in flow.jobs if unix_s < entry[1].expires)
            for job in gone:
                self._unload(job)
            if not flow.jobs:
                self._retire(flow)
            expired += gone
        left = (job.expires for flow in self._ring.values() for _, job in flow.jobs)
        self._next_expiry = min(left, default=float("inf"))
        return expired

    def _fill(self, flows: list[_Flow[J]]) -> list[J]:
        batch: list[J] = []
        room = self._limits.bytes
        while flows and len(batch) < self._limits.jobs:
            flow = next((flow for flow in flows if flow.credit_bytes > 0), None)
            if flow is None:
                self._pay(flows)
                continue
            if flow.jobs[0][1].cost_bytes > room:
                # Nobody overtakes: a large job that waited for smaller ones to fit beside it might wait for ever.
                break
            job = self._pop(flow)
            batch.append(job)
            room -= job.cost_bytes
            flow.credit_bytes -= job.cost_bytes
            if not flow.jobs:
                flows.remove(flow)
                self._retire(flow)
        return batch

    def _pay(self, flows: list[_Flow[J]]) -> None:
        """Give every queue the same number of turns, the fewest that bring one of them above zero."""
        quanta = [QUANTUM_BYTES * self._weight_of(flow.tenant) for flow in flows]
        turns = min(-flow.credit_bytes // quantum + 1 for flow, quantum in zip(flows, quanta, strict=True))
        for flow, quantum in zip(flows, quanta, strict=True):
            flow.credit_bytes += turns * quantum

    def _pop(self, flow: _Flow[J]) -> J:
        _, job = flow.jobs.popleft()
        self._unload(job)
        return job

    def _unload(self, job: J) -> None:
        load = self._loads[job.model]
        load.jobs, load.bytes = load.jobs - 1, load.bytes - job.cost_bytes
        if not load.jobs:
            del self._loads[job.model]

    def _retire(self, flow: _Flow[J]) -> None:
        del self._ring[flow.tenant, flow.model]
        if not self._ring:
            self._debts.clear()
        elif flow.credit_bytes < 0:
            # Without this, a tenant that sends one huge job at a time would never pay for any.
            self._debts[flow.tenant] = min(flow.credit_bytes, self._debts.get(flow.tenant, 0))

    def _is_full(self, load: _Load) -> bool:
        return load.jobs >= self._limits.jobs or load.bytes >= self._limits.bytes
