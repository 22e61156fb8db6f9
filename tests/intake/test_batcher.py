"""The batcher's promises, over every sequence of calls that hypothesis finds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from worker.batcher import Batcher, BatchLimits
from worker.turns import QUANTUM_BYTES

LIMITS = BatchLimits(jobs=8, bytes=300_000, wait_s=0.005)
WEIGHTS = {"acme": 1, "globex": 3, "initech": 10}


@dataclass(eq=False, slots=True)
class Item:
    """A job as the batcher sees it."""

    tenant: str = "acme"
    model: str = "m"
    cost_bytes: int = 1_000
    expires: int = 1_000
    is_exclusive: bool = False


def make(limits: BatchLimits = LIMITS) -> Batcher[Item]:
    """A batcher with three weights and 1 for everybody else."""
    return Batcher(limits, weight_of=lambda tenant: WEIGHTS.get(tenant, 1))


def fill(batcher: Batcher[Item], count: int, **kwargs: Any) -> list[Item]:
    """Add equal jobs at second 0."""
    items = [Item(**kwargs) for _ in range(count)]
    for item in items:
        batcher.add(item, now_s=0.0)
    return items


class Batching(RuleBasedStateMachine):
    """Adds, takes, expires and empties in any order, and compares with a plain set of what waits."""

    def __init__(self) -> None:
        super().__init__()
        self.batcher = make()
        self.waiting: dict[int, Item] = {}
        self.order: Counter[tuple[str, str]] = Counter()
        self.now_s = 0.0

    @rule(
        tenant=st.sampled_from(["acme", "globex", "initech", "other"]),
        model=st.sampled_from(["m", "n"]),
        cost_bytes=st.one_of(st.integers(1, 2_000), st.integers(1, LIMITS.bytes)),
        expires=st.integers(0, 100),
        count=st.integers(1, 12),
    )
    def add(self, tenant: str, model: str, cost_bytes: int, expires: int, count: int) -> None:
        for _ in range(count):
            item = Item(tenant, model, cost_bytes, expires, is_exclusive=tenant == "initech")
            self.batcher.add(item, now_s=self.now_s)
            self.waiting[id(item)] = item

    @rule(passed_s=st.floats(0, 0.01))
    def pass_time(self, passed_s: float) -> None:
        self.now_s += passed_s

    @rule(idle=st.booleans())
    def take_batch(self, idle: bool) -> None:
        batch = self.batcher.next_batch(now_s=self.now_s, idle=idle)
        if self.waiting and not idle:
            assert batch, "a busy engine with room is given what waits"
        assert len(batch) <= LIMITS.jobs
        assert sum(item.cost_bytes for item in batch) <= LIMITS.bytes
        assert len({item.model for item in batch}) <= 1
        assert len({item.tenant for item in batch}) <= 1 or not any(item.is_exclusive for item in batch)
        self._leave(batch)

    @rule(unix_s=st.integers(0, 120))
    def expire(self, unix_s: int) -> None:
        expired = self.batcher.drop_expired(unix_s)
        assert {id(item) for item in expired} == {key for key, item in self.waiting.items() if unix_s >= item.expires}
        self._leave(expired)

    @invariant()
    def holds_what_did_not_leave(self) -> None:
        assert len(self.batcher) == len(self.waiting)
        assert (self.batcher.due_in_s(now_s=self.now_s, idle=False) is None) == (not self.waiting)

    def _leave(self, items: list[Item]) -> None:
        for item in items:
            del self.waiting[id(item)]  # KeyError: it left twice, or was never added


TestBatching = Batching.TestCase
TestBatching.settings = settings(max_examples=60, stateful_step_count=40)


@given(
    sizes=st.lists(st.integers(2_000, LIMITS.bytes), min_size=1, max_size=8),
    rivals=st.integers(1, 12),
    victim_bytes=st.integers(1, LIMITS.bytes),
    model=st.sampled_from(["m", "n"]),
)
def test_nobody_starves(sizes: list[int], rivals: int, victim_bytes: int, model: str) -> None:
    """Statement 9: whatever others send, one job waits for bounded bytes, and batches of other models."""
    batcher = make()
    backlog = {f"rival-{i}": 0 for i in range(rivals)}
    victim = Item("victim", model, victim_bytes)
    served_bytes = batches = 0
    batch: list[Item] = []
    while victim not in batch:
        for item in batch:
            served_bytes += item.cost_bytes
            backlog[item.tenant] -= 1
        for rival, waiting in backlog.items():
            for turn in range(waiting, LIMITS.jobs):
                batcher.add(Item(rival, "m", sizes[turn % len(sizes)]), now_s=0.0)
            backlog[rival] = LIMITS.jobs
        if not batches:
            batcher.add(victim, now_s=0.0)
        batch = batcher.next_batch(now_s=0.0, idle=False)
        batches += 1
        # What each rival had left of one payment, then one payment more; each may end it with one job too many.
        assert model == "n" or served_bytes <= 2 * rivals * (QUANTUM_BYTES + max(sizes))
        assert model == "m" or batches <= rivals + 1


def test_weights_divide_a_contended_engine() -> None:
    """While all wait, tenants get bytes in proportion to their weights."""
    batcher = make(BatchLimits(jobs=64, bytes=300_000, wait_s=0.005))
    for tenant in WEIGHTS:
        fill(batcher, 10_000, tenant=tenant)
    served: Counter[str] = Counter()
    while sum(served.values()) < 9_000:
        served.update(item.tenant for item in batcher.next_batch(now_s=0.0, idle=False))
    total = sum(WEIGHTS.values())
    for tenant, weight in WEIGHTS.items():
        assert served[tenant] == pytest.approx(9_000 * weight / total, rel=0.1)


@pytest.mark.parametrize("is_exclusive", [False, True])
def test_one_tenant_cannot_gain_by_sending_one_huge_job_at_a_time(is_exclusive: bool) -> None:
    """A debt outlives an empty queue, so huge single jobs get no more bytes than a queue of small ones."""
    batcher = make()
    bytes_by_tenant: Counter[str] = Counter()
    fill(batcher, 2_000, tenant="small")
    huge_waits = False
    for _ in range(500):
        if not huge_waits:
            batcher.add(Item("huge", "m", 250_000, is_exclusive=is_exclusive), now_s=0.0)
        huge_waits = True
        for item in batcher.next_batch(now_s=0.0, idle=False):
            bytes_by_tenant[item.tenant] += item.cost_bytes
            huge_waits = huge_waits and item.tenant != "huge"
        if bytes_by_tenant["small"] >= 1_500_000:
            break
    assert bytes_by_tenant["huge"] <= bytes_by_tenant["small"] + 2 * 250_000 + QUANTUM_BYTES


@pytest.mark.parametrize("how", ["exclusive", "models of their own"])
def test_weights_hold_between_tenants_that_share_no_batch(how: str) -> None:
    """Whoever is alone in its batches still gets no more than its weight says."""
    batcher = make(BatchLimits(jobs=64, bytes=300_000, wait_s=0.005))
    for tenant in WEIGHTS:
        if how == "exclusive":
            fill(batcher, 10_000, tenant=tenant, is_exclusive=True)
        else:
            fill(batcher, 10_000, tenant=tenant, model=tenant)
    served: Counter[str] = Counter()
    while sum(served.values()) < 9_000:
        batch = batcher.next_batch(now_s=0.0, idle=False)
        assert len({item.tenant for item in batch}) == 1
        served.update(item.tenant for item in batch)
    total = sum(WEIGHTS.values())
    for tenant, weight in WEIGHTS.items():
        assert served[tenant] == pytest.approx(9_000 * weight / total, rel=0.1)


@pytest.mark.parametrize("is_exclusive", [False, True])
@given(weight=st.integers(1, 1_000), cost_bytes=st.integers(1, 20_000))
def test_a_newcomer_waits_for_one_batch_of_a_heavy_tenant(is_exclusive: bool, weight: int, cost_bytes: int) -> None:
    """However much weight and backlog another has, the first job of somebody new is in the second batch from now."""
    batcher: Batcher[Item] = Batcher(LIMITS, weight_of=lambda tenant: weight if tenant == "heavy" else 1)
    fill(batcher, 40, tenant="heavy", cost_bytes=cost_bytes)
    batcher.next_batch(now_s=0.0, idle=False)
    newcomer = Item("new", is_exclusive=is_exclusive)
    batcher.add(newcomer, now_s=0.0)
    assert newcomer in [item for _ in range(2) for item in batcher.next_batch(now_s=0.0, idle=False)]


def test_an_idle_engine_waits_for_a_fuller_batch_and_a_busy_one_does_not() -> None:
    """Greedy while busy; idle, a batch leaves when it is full or its oldest job has waited long enough."""
    batcher = make()
    fill(batcher, 2)
    assert batcher.next_batch(now_s=0.004, idle=True) == []
    assert batcher.due_in_s(now_s=0.004, idle=True) == pytest.approx(0.001)
    assert len(batcher.next_batch(now_s=0.005, idle=True)) == 2
    fill(batcher, 2)
    assert len(batcher.next_batch(now_s=0.0, idle=False)) == 2
    fill(batcher, LIMITS.jobs)
    assert len(batcher.next_batch(now_s=0.0, idle=True)) == LIMITS.jobs


def test_a_job_that_fits_no_batch_is_refused_at_the_door() -> None:
    """Nothing enters that could never leave."""
    with pytest.raises(ValueError, match="limit"):
        make().add(Item(cost_bytes=LIMITS.bytes + 1), now_s=0.0)


def test_jobs_of_one_tenant_leave_in_order_of_arrival() -> None:
    """No job of a (tenant, model) overtakes another, whatever its size."""
    batcher = make()
    items = [Item(cost_bytes=cost) for cost in (290_000, 10, 250_000, 10, 10, 299_000, 5)]
    for item in items:
        batcher.add(item, now_s=0.0)
    served: list[Item] = []
    while len(batcher):
        served += batcher.next_batch(now_s=0.0, idle=False)
    assert served == items
