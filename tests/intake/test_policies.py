"""The pure policies beside the intake's loops: shares of a receive, backoff, outages, suspects, holdings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrgc.errors import EnclaveUnreachable, KeyBusyError, QueueUnavailable, StoreUnavailable
from worker.backoff import Backoff
from worker.holdings import Holdings
from worker.outages import LONGEST_PAUSE_S, Outages
from worker.receive_policy import RECEIVE_WAIT_S, receive_wait_s
from worker.sources.base import Budget, Lease
from worker.sources.messages import MAX_MESSAGE_BYTES
from worker.sources.receive_plan import BUSY_SHARE, ReceivePlan
from worker.suspects import Suspects

MESSAGE_BYTES = 1_000


@given(
    jobs=st.integers(0, 300),
    budget_bytes=st.integers(0, 300 * MESSAGE_BYTES),
    quotas=st.lists(st.integers(1, 100), max_size=40),
)
def test_a_receive_never_asks_for_more_than_the_budget(jobs: int, budget_bytes: int, quotas: list[int]) -> None:
    """The sum of the shares fits jobs, bytes and every quota, and somebody is asked whenever there is room."""
    tenants = {f"t{index}": quota for index, quota in enumerate(quotas)}
    plan = ReceivePlan(max_message_bytes=MESSAGE_BYTES)
    plan.learn(1, {tenant: index % 3 for index, tenant in enumerate(tenants)})
    shares = [plan.next(Budget(jobs, budget_bytes, tenants), list(tenants)) for _ in range(2)]
    for asked in ({tenant: count for count, names in each.items() for tenant in names} for each in shares):
        assert sum(asked.values()) <= min(jobs, budget_bytes // MESSAGE_BYTES)
        assert all(1 <= count <= tenants[tenant] for tenant, count in asked.items())
        assert bool(asked) == bool(quotas and jobs and budget_bytes >= MESSAGE_BYTES)


@given(tenants=st.integers(1, 50), room=st.integers(1, 50))
def test_every_tenant_is_asked_in_turn(tenants: int, room: int) -> None:
    """With room for few, everybody is asked within as many receives as it takes to go round."""
    names = [f"t{index}" for index in range(tenants)]
    budget = Budget(room, room * MESSAGE_BYTES, dict.fromkeys(names, 10))
    plan = ReceivePlan(max_message_bytes=MESSAGE_BYTES)
    rounds = -(-tenants // room) + 1
    asked = {tenant for _ in range(rounds) for group in plan.next(budget, names).values() for tenant in group}
    assert asked == set(names)


@given(tenants=st.integers(1, 30), room=st.integers(1, 100), data=st.data())
def test_nobody_is_forgotten_whoever_is_busy(tenants: int, room: int, data: st.DataObject) -> None:
    """While some give all that they are asked for and others nothing, and they change, everybody is asked in time."""
    names = [f"t{index}" for index in range(tenants)]
    budget = Budget(room, room * MESSAGE_BYTES, dict.fromkeys(names, 100))
    plan = ReceivePlan(max_message_bytes=MESSAGE_BYTES)
    unasked = set(names)
    for _ in range(4 * tenants + 4):
        busy = data.draw(st.sets(st.sampled_from(names)))
        for count, group in plan.next(budget, names).items():
            unasked.difference_update(group)
            plan.learn(count, {tenant: count if tenant in busy else 0 for tenant in group})
    assert not unasked


def test_a_busy_tenant_among_a_thousand_has_half_of_the_room() -> None:
    """One long queue beside 999 empty ones is read by hundreds, and the others are still looked at."""
    names = [f"t{index}" for index in range(1_000)]
    budget = Budget(1_024, 1_024 * MESSAGE_BYTES, dict.fromkeys(names, 4_096))
    plan = ReceivePlan(max_message_bytes=MESSAGE_BYTES)
    for count, group in plan.next(budget, names).items():
        plan.learn(count, {tenant: count if tenant == "t7" else 0 for tenant in group})
    shares = plan.next(budget, names)
    assert shares[512] == ["t7"]
    assert len(shares[1]) == 512


def test_a_thousand_busy_tenants_take_turns_with_shares_of_some_size() -> None:
    """Each is asked for sixteen at a time, and all have been asked after as many receives as that takes."""
    names = [f"t{index}" for index in range(1_000)]
    budget = Budget(1_024, 1_024 * MESSAGE_BYTES, dict.fromkeys(names, 4_096))
    plan = ReceivePlan(max_message_bytes=MESSAGE_BYTES)
    plan.learn(1, dict.fromkeys(names, 1))
    shares = [plan.next(budget, names) for _ in range(16)]
    assert all(each.keys() == {BUSY_SHARE} for each in shares)
    assert {tenant for each in shares for tenant in each[BUSY_SHARE]} == set(names)


@given(held=st.integers(0, 2_000), bound=st.integers(1, 2_000), batch=st.integers(1, 1_024), full=st.booleans())
def test_a_receiver_asks_while_there_is_room_and_little_to_do(held: int, bound: int, batch: int, full: bool) -> None:
    """It never asks without room, always with room for a batch, always when idle; what it leaves out is a handful."""
    room = max(0, bound - held)
    budget = Budget(room, room * MAX_MESSAGE_BYTES, {"acme": 1}, has_full_tenant=full)
    wait_s = receive_wait_s(budget, held_jobs=held, batch_jobs=batch)
    if room == 0:
        assert wait_s is None
    elif room >= batch or held < 3:
        assert wait_s is not None
    if wait_s is None:
        assert room == 0 or room * 3 < held
    else:
        assert wait_s == (0.0 if full else RECEIVE_WAIT_S)


def test_a_receiver_with_room_for_no_message_waits() -> None:
    """Bytes count by the largest message, so that no receive is made that could bring nothing."""
    budget = Budget(100, MAX_MESSAGE_BYTES - 1, {"acme": 100})
    assert receive_wait_s(budget, held_jobs=1, batch_jobs=64) is None


@given(jitter=st.floats(0, 1, exclude_max=True), failures=st.integers(1, 5_000))
def test_backoff_grows_to_its_cap_and_forgets(jitter: float, failures: int) -> None:
    """Every wait lies between half and all of a doubling that stops at the cap."""
    backoff = Backoff(base_s=0.1, cap_s=10.0, jitter=lambda: jitter)
    for failure in range(min(failures, 100)):
        full = min(10.0, 0.1 * 2.0**failure)
        assert full / 2 <= backoff.next_s() <= full
    backoff.reset()
    assert backoff.next_s() <= 0.1


def test_an_outage_closes_probes_and_opens_again() -> None:
    """Failures close the intake for a while, then let probes in; the first success opens it."""
    now = [0.0]
    outages = Outages(clock=lambda: now[0])
    assert outages.gate().is_open
    assert outages.failed(EnclaveUnreachable(), tenant="acme")
    assert not outages.failed(EnclaveUnreachable(), tenant="acme")
    assert not outages.gate().is_open
    assert outages.codes() == ["enclave_unreachable"]
    now[0] += LONGEST_PAUSE_S
    gate = outages.gate()
    assert gate.is_open
    assert gate.is_probing
    outages.failed(EnclaveUnreachable(), tenant="acme")
    assert not outages.gate().is_open
    outages.served(tenant="acme")
    assert outages.gate().is_open
    assert not outages.gate().is_probing
    assert outages.codes() == []


def test_a_batch_of_failures_lengthens_the_pause_once() -> None:
    """A thousand jobs that fail together are one failure."""
    now = [0.0]
    outages = Outages(clock=lambda: now[0])
    for _ in range(1_000):
        outages.failed(StoreUnavailable())
    now[0] = 0.21
    assert outages.gate().is_open


def test_kms_is_away_for_all_while_nobody_is_served() -> None:
    """Whoever is served after a tenant's KMS began to fail shows that it fails that tenant alone."""
    now = [0.0]
    outages = Outages(clock=lambda: now[0])
    outages.served(tenant="globex")
    now[0] += 1
    outages.failed(KeyBusyError(), tenant="acme")
    assert outages.codes() == ["key_busy"]
    now[0] += 1
    outages.served(tenant="globex")
    assert outages.codes() == []
    now[0] += 1
    outages.failed(KeyBusyError(), tenant="acme")
    assert outages.codes() == []
    outages.failed(KeyBusyError(), tenant="globex")
    assert outages.codes() == ["key_busy"]
    outages.served(tenant="globex")
    outages.served(tenant="acme")
    assert outages.codes() == []


def test_outages_do_not_hide_one_another() -> None:
    """Store, broker and engine recover each by its own success; a tenant's KMS concerns that tenant."""
    now = [0.0]
    outages = Outages(clock=lambda: now[0])
    outages.failed(StoreUnavailable(), tenant="acme")
    outages.failed(QueueUnavailable())
    outages.failed(KeyBusyError(), tenant="acme")
    now[0] += 0.01
    outages.served(tenant="globex")
    assert outages.codes() == ["queue_unavailable", "store_unavailable"]
    assert outages.gate().closed_tenants == {"acme"}
    outages.stored()
    outages.received()
    assert outages.gate().is_open
    assert outages.gate().closed_tenants == {"acme"}
    outages.served(tenant="acme")
    assert outages.gate().closed_tenants == frozenset()


@given(sizes=st.lists(st.integers(1, 64), min_size=1, max_size=3), data=st.data())
def test_halving_finds_the_guilty_job_and_counts_no_other(sizes: list[int], data: st.DataObject) -> None:
    """Whichever job kills engines is alone at a death after a logarithmic number of them, and only that one is."""
    total = sum(sizes)
    guilty = data.draw(st.integers(0, total - 1))
    numbers = iter(range(total))
    inside = [[next(numbers) for _ in range(size)] for size in sizes]
    suspects: Suspects[int] = Suspects()
    alone = suspects.add_death(inside)
    deaths, served = 1, []
    while alone is None:
        group = suspects.next()
        assert group is not None, "the guilty job got lost"
        if guilty in group:
            alone = suspects.add_death([group])
            deaths += 1
        else:
            served += group
    while (group := suspects.next()) is not None:
        served += group
    assert alone == guilty
    assert sorted([*served, guilty]) == list(range(total))
    assert deaths <= 1 + max(sizes).bit_length() + 1


def test_holdings_know_what_is_held_and_what_may_come() -> None:
    """Budgets shrink with what is held; a lease that came back extends the one in work, and is held once."""
    holdings = Holdings(max_jobs=10, max_bytes=1_000)
    lease = Lease("acme", "1-0", bytes(300), deadline_s=1.0)
    assert holdings.add([lease]) == [lease]
    again = Lease("acme", "1-0", bytes(300), deadline_s=9.0)
    assert holdings.add([again]) == []
    assert lease.deadline_s == 9.0
    assert holdings.holds(lease)
    assert not holdings.holds(again)
    full = Budget(3, 700, {"acme": 0, "globex": 5}, has_full_tenant=True)
    assert holdings.budget({"acme": 1, "globex": 5}, max_jobs=4) == full
    assert holdings.budget({"acme": 0, "globex": 5}, max_jobs=4) == Budget(3, 700, {"acme": 0, "globex": 5})
    assert holdings.budget({"acme": 2}, max_jobs=4) == Budget(3, 700, {"acme": 1})
    assert holdings.remove([again]) == []
    assert len(holdings.remove([again, lease])) == 1
    assert holdings.remove([lease]) == []
    assert holdings.budget({"acme": 1}, max_jobs=100) == Budget(10, 1_000, {"acme": 1})
    assert holdings.wait_empty(0)


def test_a_wrong_weight_of_evidence_is_not_counted() -> None:
    """Two jobs in an engine, even in two batches, are both suspects and neither is counted."""
    suspects: Suspects[str] = Suspects()
    assert suspects.add_death([["a"], ["b"]]) is None
    assert suspects.next() == ["a"]
    assert suspects.next() == ["b"]
    assert suspects.next() is None
    assert suspects.add_death([["a"]]) == "a"
    assert pytest.approx(0) == len(suspects)
