"""Which jobs make the next job batch, and when: pure policy over admitted jobs. No I/O, no thread, no clock of its own.

Jobs wait in lanes. A lane is what may be batched together: the jobs of one model, or of one `exclusive` tenant for one
model. Lanes take turns by the sum of their tenants' weights, and within a lane its tenants by their weights
(worker.turns), both in bytes. Nobody overtakes within a tenant and model.

While the engine is busy a batch leaves as soon as there is room for it. An idle engine is worth a short wait, because a
batch of one costs it almost as much as a full one.

May import: the standard library, worker.turns. Called by worker.dispatch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from worker.turns import Turns


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
    def is_exclusive(self) -> bool:
        """Whether it must not share a batch with another tenant's jobs."""
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


class _LaneName(NamedTuple):
    model: str
    #: Of an exclusive tenant; empty where tenants share.
    tenant: str


class _Lane(Generic[J]):
    """Jobs that may be batched together: by tenant, in order of arrival with their arrival times."""

    def __init__(self, weight_of: Callable[[str], int]) -> None:
        self._weight_of = weight_of
        self.turns: Turns[str] = Turns(weight_of)
        self.queues: dict[str, deque[tuple[float, J]]] = {}
        self.jobs = 0
        self.bytes = 0

    @property
    def weight(self) -> int:
        """Of all its tenants together."""
        return sum(map(self._weight_of, self.queues))

    @property
    def oldest_s(self) -> float:
        """Monotonic second of the first arrival."""
        return min(queue[0][0] for queue in self.queues.values())

    def add(self, job: J, now_s: float) -> None:
        """Append a job."""
        if job.tenant not in self.queues:
            self.queues[job.tenant] = deque()
            self.turns.join(job.tenant)
        self.queues[job.tenant].append((now_s, job))
        self.jobs, self.bytes = self.jobs + 1, self.bytes + job.cost_bytes

    def take(self, limits: BatchLimits) -> list[J]:
        """Take a batch, the tenants by their turns."""
        first = self.turns.next()
        batch: list[J] = []
        room = limits.bytes
        while self.jobs and len(batch) < limits.jobs:
            tenant = self.turns.next()
            _, job = self.queues[tenant][0]
            if job.cost_bytes > room:
                # Nobody overtakes: a large job that waited for smaller ones to fit beside it might wait for ever.
                break
            self.queues[tenant].popleft()
            batch.append(job)
            room -= job.cost_bytes
            self._unload(job)
            self.turns.charge(tenant, job.cost_bytes)
            self._ensure_waiting(tenant)
        self.turns.pass_on(first)
        return batch

    def drop(self, unix_s: float) -> list[J]:
        """Take out jobs that have expired."""
        dropped: list[J] = []
        for tenant, queue in list(self.queues.items()):
            gone = [job for _, job in queue if unix_s >= job.expires]
            if gone:
                self.queues[tenant] = deque(entry for entry in queue if unix_s < entry[1].expires)
            for job in gone:
                self._unload(job)
            self._ensure_waiting(tenant)
            dropped += gone
        return dropped

    def _unload(self, job: J) -> None:
        self.jobs, self.bytes = self.jobs - 1, self.bytes - job.cost_bytes

    def _ensure_waiting(self, tenant: str) -> None:
        if not self.queues[tenant]:
            del self.queues[tenant]
            self.turns.leave(tenant)


class Batcher(Generic[J]):
    """Admitted jobs on their way to an engine. Every job that was added leaves exactly once.

    Args:
        limits: of one batch.
        weight_of: a tenant's share against the others.
    """

    def __init__(self, limits: BatchLimits, *, weight_of: Callable[[str], int]) -> None:
        self._limits = limits
        self._weight_of = weight_of
        self._lanes: dict[_LaneName, _Lane[J]] = {}
        self._turns: Turns[_LaneName] = Turns(lambda name: self._lanes[name].weight)
        self._next_expiry: float = float("inf")

    def __len__(self) -> int:
        return sum(lane.jobs for lane in self._lanes.values())

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
        name = _LaneName(job.model, job.tenant if job.is_exclusive else "")
        if name not in self._lanes:
            self._lanes[name] = _Lane(self._weight_of)
            self._turns.join(name)
        self._lanes[name].add(job, now_s)
        self._next_expiry = min(self._next_expiry, job.expires)

    def next_batch(self, *, now_s: float, idle: bool) -> list[J]:
        """Take the next batch.

        Args:
            now_s: monotonic seconds.
            idle: whether the engine that would get it has nothing to do.

        Returns:
            Jobs of one lane within the limits; empty when nothing waits, or when waiting a little longer is better.
        """
        wait_s = self.due_in_s(now_s=now_s, idle=idle)
        if wait_s is None or wait_s > 0:
            return []
        name = self._turns.next()
        batch = self._lanes[name].take(self._limits)
        self._turns.charge(name, sum(job.cost_bytes for job in batch))
        self._turns.pass_on(name)
        self._ensure_waiting(name)
        return batch

    def due_in_s(self, *, now_s: float, idle: bool) -> float | None:
        """Return how long the next batch should still wait: 0 when it is due, None when nothing waits."""
        if not self._lanes:
            return None
        if not idle or any(self._is_full(lane) for lane in self._lanes.values()):
            return 0.0
        oldest_s = min(lane.oldest_s for lane in self._lanes.values())
        return max(0.0, oldest_s + self._limits.wait_s - now_s)

    def drop_expired(self, unix_s: float) -> list[J]:
        """Take out the jobs that must not be served any more."""
        if unix_s < self._next_expiry:
            return []
        expired: list[J] = []
        for name, lane in list(self._lanes.items()):
            expired += lane.drop(unix_s)
            self._ensure_waiting(name)
        left = (job.expires for lane in self._lanes.values() for queue in lane.queues.values() for _, job in queue)
        self._next_expiry = min(left, default=float("inf"))
        return expired

    def _ensure_waiting(self, name: _LaneName) -> None:
        if not self._lanes[name].jobs:
            del self._lanes[name]
            self._turns.leave(name)

    def _is_full(self, lane: _Lane[J]) -> bool:
        return lane.jobs >= self._limits.jobs or lane.bytes >= self._limits.bytes
