"""Whose turn it is, over every sequence of joining, paying and leaving that hypothesis finds."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.turns import QUANTUM_BYTES, Turns

WEIGHTS = {"a": 1, "b": 3, "c": 10, "d": 1_000}


def make() -> Turns[str]:
    """Turns of four weights."""
    return Turns(WEIGHTS.__getitem__)


@given(
    steps=st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from(["join", "leave", "serve", "pass"]), st.integers(1, 1 << 20))
    )
)
def test_somebody_who_waits_is_always_next(steps: list[tuple[str, str, int]]) -> None:
    """Whatever happened before, the next is one who waits, and nobody is there twice or forgotten."""
    turns, waiting = make(), set()
    for who, what, cost_bytes in steps:
        if what == "join" and who not in waiting:
            turns.join(who)
            waiting.add(who)
        elif what == "leave" and who in waiting:
            turns.leave(who)
            waiting.remove(who)
        elif waiting:
            chosen = turns.next()
            assert chosen in waiting
            turns.pass_on(chosen) if what == "pass" else turns.charge(chosen, cost_bytes)
        assert len(turns) == len(waiting)


@given(costs=st.lists(st.integers(QUANTUM_BYTES // 8, 4 * QUANTUM_BYTES), min_size=3, max_size=3))
def test_everybody_gets_bytes_by_weight(costs: list[int]) -> None:
    """However large each one's jobs are, shares follow the weights, within one turn and one job of each."""
    turns, cost_of = make(), dict(zip("abc", costs, strict=True))
    served: Counter[str] = Counter()
    for who in cost_of:
        turns.join(who)
    while served.total() < 300 * QUANTUM_BYTES:
        who = turns.next()
        turns.charge(who, cost_of[who])
        served[who] += cost_of[who]
    per_weight = {who: served[who] / WEIGHTS[who] for who in cost_of}
    slack = max(QUANTUM_BYTES + cost_of[who] / WEIGHTS[who] for who in cost_of)
    assert max(per_weight.values()) - min(per_weight.values()) <= 2 * slack


def test_a_debt_is_kept_while_others_wait_and_forgiven_when_nobody_does() -> None:
    """Coming back is no way to be served out of turn; being alone costs nothing."""
    turns = make()
    turns.join("a")
    turns.join("b")
    assert turns.next() == "a"
    turns.charge("a", 10 * QUANTUM_BYTES)
    turns.leave("a")
    turns.join("a")
    served = 0
    while turns.next() == "b":
        turns.charge("b", QUANTUM_BYTES)
        served += QUANTUM_BYTES
    assert served == pytest.approx(3 * 10 * QUANTUM_BYTES, rel=0.2)
    turns.charge("a", 10 * QUANTUM_BYTES)
    turns.leave("a")
    turns.leave("b")
    turns.join("b")
    turns.join("a")
    assert turns.next() == "b"
    turns.charge("b", 1)
    assert turns.next() == "a"


def test_who_was_alone_owes_nothing_to_who_comes_later() -> None:
    """Serving a single one for hours does not make it wait afterwards."""
    turns = make()
    turns.join("a")
    for _ in range(1_000):
        assert turns.next() == "a"
        turns.charge("a", QUANTUM_BYTES)
    turns.join("b")
    served: Counter[str] = Counter()
    for _ in range(400):
        who = turns.next()
        turns.charge(who, QUANTUM_BYTES)
        served[who] += 1
    assert served["a"] == pytest.approx(100, rel=0.1)
