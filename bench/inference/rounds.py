"""Contenders take turns, each framed by the model itself: half of the same texts just before it, half just after.

A machine is shared, and its load changes within a minute. So nothing is compared across turns: a ratio is that of a
turn to its own frame, and the median over the rounds is reported. The order rotates. Pure but for the clock that it is
given. May import: the standard library.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Measured(NamedTuple):
    """One turn."""

    #: Of the contender.
    rate: float
    #: Of the model in the same unit, before and after the turn.
    model: float

    @property
    def ratio(self) -> float:
        """What part of the model's rate the contender has."""
        return self.rate / self.model


Turn = Callable[[], Measured]
#: Turns of each contender, one per round.
Rounds = Mapping[str, list[Measured]]


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


def take_turns(turns: Mapping[str, Turn], rounds: int, budget: Budget, tell: Callable[[str], None]) -> Rounds:
    """Measure every contender once a round.

    Args:
        turns: by the contender's name.
        rounds: how many, at most.
        budget: ends them earlier.
        tell: is told of every turn.

    Returns:
        At least one turn of each, as many of all.
    """
    measured: dict[str, list[Measured]] = {name: [] for name in turns}
    names = list(turns)
    for number in range(rounds):
        if number and not budget.allows_another():
            break
        began_s = budget.elapsed_s
        for name in names[number % len(names) :] + names[: number % len(names)]:
            turn = turns[name]()
            measured[name].append(turn)
            tell(f"round {number + 1}/{rounds}  {name:34} {turn.rate:8.1f}  model {turn.model:8.1f}")
        budget.spent(budget.elapsed_s - began_s)
    return measured


def rate(turns: list[Measured]) -> float:
    """Return the median rate of a contender."""
    return statistics.median(turn.rate for turn in turns)
