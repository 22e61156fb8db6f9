"""The packing policy: order, budget, fairness."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from worker.engine.packer import Packer

BUDGET = 20
#: (model, tokens) of rows that arrive together.
ARRIVALS = st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.integers(1, 30), min_size=1, max_size=6)), max_size=12)


def arrive(packer: Packer[str, int], arrivals: list[tuple[str, list[int]]]) -> list[tuple[str, int]]:
    """Add rows numbered in order of arrival; return (model, tokens) of each."""
    rows: list[tuple[str, int]] = []
    for model, lengths in arrivals:
        packer.add(model, [(len(rows) + place, tokens) for place, tokens in enumerate(lengths)])
        rows.extend((model, tokens) for tokens in lengths)
    return rows


def drain(packer: Packer[str, int]) -> list[tuple[str, list[int]]]:
    """Take batches until nothing waits."""
    batches = []
    while (batch := packer.next_batch()) is not None:
        batches.append(batch)
    return batches


@given(arrivals=ARRIVALS)
def test_every_row_leaves_once_in_order_of_arrival(arrivals: list[tuple[str, list[int]]]) -> None:
    """Nobody is overtaken, nobody waits for ever, nobody is served twice."""
    packer: Packer[str, int] = Packer(BUDGET)
    rows = arrive(packer, arrivals)
    assert [row for _, batch in drain(packer) for row in batch] == list(range(len(rows)))
    assert packer.waiting_tokens == 0


@given(arrivals=ARRIVALS)
def test_a_batch_is_of_one_model_and_within_the_budget(arrivals: list[tuple[str, list[int]]]) -> None:
    """Only a row that is over the budget by itself exceeds it, alone."""
    packer: Packer[str, int] = Packer(BUDGET)
    rows = arrive(packer, arrivals)
    for model, batch in drain(packer):
        assert {rows[row][0] for row in batch} == {model}
        assert sum(rows[row][1] for row in batch) <= BUDGET or len(batch) == 1


@given(arrivals=ARRIVALS)
def test_a_batch_ends_only_where_it_must(arrivals: list[tuple[str, list[int]]]) -> None:
    """The next row is left out because it is of another model or would exceed the budget, never for less."""
    packer: Packer[str, int] = Packer(BUDGET)
    rows = arrive(packer, arrivals)
    batches = drain(packer)
    for (model, batch), (next_model, following) in itertools.pairwise(batches):
        tokens = sum(rows[row][1] for row in batch)
        assert next_model != model or tokens + rows[following[0]][1] > BUDGET


def test_rows_of_different_job_batches_share_a_token_batch() -> None:
    """Small jobs of many tenants fill one forward pass."""
    packer: Packer[str, int] = Packer(BUDGET)
    arrive(packer, [("a", [5]), ("a", [5]), ("a", [5])])
    assert packer.next_batch() == ("a", [0, 1, 2])


def test_it_is_full_when_two_batches_wait() -> None:
    """One batch is next and one is behind it; more would only take memory."""
    packer: Packer[str, int] = Packer(BUDGET)
    seen = []
    for tokens in (2 * BUDGET - 1, 1):
        packer.add("a", [(0, tokens)])
        seen.append(packer.is_full)
    packer.next_batch()
    assert [*seen, packer.is_full] == [False, True, False]
