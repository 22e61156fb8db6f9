"""How a task that visits every tenant stays within its time: a few at a time, and another first one each round. Pure.

A round that is cut short leaves tenants out; because each round begins elsewhere, no tenant is always among them.

May import: the standard library. Called by tasks.control.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field


def from_another(names: Sequence[str], *, turn: int, page: int) -> list[str]:
    """Return all names in their order, beginning `turn` pages further on.

    Args:
        names: in an order that stays.
        turn: counts up from round to round, whichever process runs it.
        page: how many are visited at a time.
    """
    if not names:
        return []
    first = turn * page % len(names)
    return [*names[first:], *names[:first]]


@dataclass(slots=True)
class Round:
    """One visit of all names in pages, cut short when its time is over.

    Args:
        names: whom to visit, in this order.
        page: how many at a time; one page is always visited.
        within_s: after this no further page begins.
        now_s: a clock that only goes forward.
    """

    names: Sequence[str]
    page: int
    within_s: float
    now_s: Callable[[], float] = time.monotonic
    #: How many were not visited, once the pages are exhausted.
    left: int = field(default=0, init=False)

    def pages(self) -> Iterator[Sequence[str]]:
        """Yield the names, page by page, while there is time."""
        until_s = self.now_s() + self.within_s
        for first in range(0, len(self.names), self.page):
            if first and self.now_s() >= until_s:
                self.left = len(self.names) - first
                return
            yield self.names[first : first + self.page]
