"""Contenders take turns, round after round, in an order that rotates; nothing is compared across rounds.

A neighbour's load then hits all alike. Pure but for the clock that it is given. May import: the standard library.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

#: One turn of a contender; returns its rate in units of its own.
Turn = Callable[[], float]
#: Rates of each contender, one per round.
Rates = Mapping[str, list[float]]


class Budget:
    """How long the rounds may go on.

    Args:
        limit_s: no round starts that would end later, going by the longest so far. The first always starts.
        now: monotonic seconds.
    """

    def __init__(self, limit_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._limit_s = limit_s
        self._now = now
        self._began_s = now()
        self._longest_s = 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the budget was made."""
        return self._now() - self._began_s

    def allows_another(self) -> bool:
        """Return whether one more round fits."""
        return self.elapsed_s + self._longest_s <= self._limit_s

    def spent(self, round_s: float) -> None:
        """Note how long a round took."""
        self._longest_s = max(self._longest_s, round_s)


def take_turns(turns: Mapping[str, Turn], rounds: int, budget: Budget, tell: Callable[[str], None]) -> Rates:
    """Measure every contender once a round.

    Args:
        turns: by the contender's name.
        rounds: how many, at most.
        budget: ends them earlier.
        tell: is told of every measured turn.

    Returns:
        At least one rate of each, as many of all.
    """
    rates: dict[str, list[float]] = {name: [] for name in turns}
    names = list(turns)
    for number in range(rounds):
        if number and not budget.allows_another():
            break
        began_s = budget.elapsed_s
        for name in names[number % len(names) :] + names[: number % len(names)]:
            rates[name].append(turns[name]())
            tell(f"round {number + 1}/{rounds}  {name:34} {rates[name][-1]:10.1f}")
        budget.spent(budget.elapsed_s - began_s)
    return rates


def ratio(rates: Rates, name: str, peer: str) -> float:
    """Return the median over the rounds of one contender's rate by another's in the same round."""
    return statistics.median(mine / theirs for mine, theirs in zip(rates[name], rates[peer], strict=True))


def spread(rates: Rates, name: str, peer: str) -> tuple[float, float]:
    """Return the least and the greatest of those ratios."""
    found = [mine / theirs for mine, theirs in zip(rates[name], rates[peer], strict=True)]
    return min(found), max(found)
