"""Rounds over all tenants: bounded in time, and over several rounds fair to everyone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.rounds import Round, from_another

NAMES = [f"t{index}" for index in range(10)]


@given(st.lists(st.text(min_size=1), unique=True, max_size=30), st.integers(0, 1_000), st.integers(1, 40))
def test_a_round_visits_each_name_once_in_pages(names: list[str], turn: int, page: int) -> None:
    """With time enough all are visited, none twice, and no page is longer than asked for."""
    visit = Round(from_another(names, turn=turn, page=page), page=page, within_s=1.0, now_s=lambda: 0.0)
    pages = list(visit.pages())
    assert sorted(name for each in pages for name in each) == sorted(names)
    assert all(1 <= len(each) <= page for each in pages)
    assert visit.left == 0


def test_a_round_whose_time_is_over_begins_no_further_page() -> None:
    """The first page is always visited; who is left out is counted."""
    clock = iter([0.0, 5.0, 10.0])
    visit = Round(NAMES, page=3, within_s=10.0, now_s=lambda: next(clock))
    assert [list(page) for page in visit.pages()] == [["t0", "t1", "t2"], ["t3", "t4", "t5"]]
    assert visit.left == 4


@given(st.integers(1, 12), st.integers(0, 100))
def test_rounds_that_are_always_cut_short_still_reach_everyone(page: int, first: int) -> None:
    """If each round has time for one page only, as many rounds as there are names visit all."""
    seen: set[str] = set()
    for turn in range(first, first + len(NAMES)):
        visit = Round(from_another(NAMES, turn=turn, page=page), page=page, within_s=0.0, now_s=lambda: 0.0)
        seen.update(*visit.pages())
    assert seen == set(NAMES)
