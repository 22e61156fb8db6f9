"""How one receive divides its budget between tenants: pure policy.

A tenant is busy if it last gave all that it was asked for. Busy ones take turns with shares of some size, because jobs
of one tenant cost every process less together than apart. The others are asked for one message each, which is how it
comes out that they have some. Where there are both, each kind has half of the room, so neither waits for the other, and
the one busy tenant among a thousand is not asked for one message at a time.

May import: the standard library, worker.sources.base. Called by worker.sources.redis_streams.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import filterfalse, islice
from typing import Final

from worker.sources.base import Budget

#: Least share of a busy tenant while there is room for it: about the jobs of one turn in the batcher.
BUSY_SHARE: Final = 16


class ReceivePlan:
    """Equal shares within each kind; where there are more tenants than room, a window of them that goes round.

    Args:
        max_message_bytes: the most that one message may bring, which is what the byte budget must assume of each.
    """

    def __init__(self, *, max_message_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._busy: set[str] = set()
        #: The tenants of the last plan by name, sorted anew only when they change: there may be thousands.
        self._ring: list[str] = []
        self._tenants: frozenset[str] = frozenset()
        self._busy_window = _Window()
        self._quiet_window = _Window()
        #: Every other call rounds an odd half up, so that a room of one belongs to neither kind for ever.
        self._odd = 0

    def next(self, budget: Budget, tenants: Collection[str]) -> dict[int, list[str]]:
        """Plan one receive.

        A stream's COUNT applies to every stream of its command, so tenants are grouped by it. Shares are rounded down
        to powers of two, which bounds the commands of one receive to about twenty however the quotas lie.

        Args:
            budget: what may come in, in all and by tenant.
            tenants: whom to read; a quota of 0 in the budget leaves one out.

        Returns:
            Tenants by the number of messages to ask each for; their sum never exceeds the budget.
        """
        room = min(budget.jobs, budget.bytes // self._max_message_bytes)
        is_busy = self._busy.__contains__
        may_have: Callable[[str], int | None] = budget.tenants.get
        if tenants != self._tenants:
            self._tenants, self._ring = frozenset(tenants), sorted(tenants)
        # Names pass through filters and not through a loop of Python: a plan is made for every request.
        has_busy = any(map(may_have, self._busy & self._tenants))
        self._odd ^= 1
        quiet = self._quiet_window.pick(
            self._ring,
            lambda names: filter(may_have, filterfalse(is_busy, names)),
            most=(room + self._odd) // 2 if has_busy else room,
        )
        if has_busy:
            left = room - len(quiet)
            busy = self._busy_window.pick(
                self._ring,
                lambda names: filter(may_have, filter(is_busy, names)),
                most=max(1, left // BUSY_SHARE) if left else 0,
            )
            asked = _even(busy, left) | dict.fromkeys(quiet, 1)
        else:
            asked = _even(quiet, room)
        shares: dict[int, list[str]] = defaultdict(list)
        for tenant, share in asked.items():
            allowed = min(share, budget.tenants[tenant])
            shares[1 << (allowed.bit_length() - 1)].append(tenant)
        return dict(shares)

    def learn(self, asked: int, given: Mapping[str, int]) -> None:
        """Note how many messages tenants gave, each of whom was asked for `asked`."""
        for tenant, count in given.items():
            if count >= asked:
                self._busy.add(tenant)
            else:
                self._busy.discard(tenant)


class _Window:
    """The part of some tenants whose turn it is; goes round by name, whoever joins or leaves meanwhile."""

    def __init__(self) -> None:
        self._last = ""

    def pick(self, ring: Sequence[str], wanted: Callable[[Sequence[str]], Iterable[str]], *, most: int) -> list[str]:
        """Return the next of those that are wanted, at most so many.

        Args:
            ring: all names, sorted.
            wanted: leaves out those that are not.
            most: 0 picks nobody.
        """
        start = bisect_right(ring, self._last)
        picked = list(islice(wanted([*ring[start:], *ring[:start]]), most))
        if picked:
            self._last = picked[-1]
        return picked


def _even(tenants: Sequence[str], room: int) -> dict[str, int]:
    return dict.fromkeys(tenants, room // len(tenants)) if tenants else {}
