"""How one receive divides its budget between tenants: pure policy.

May import: the standard library, worker.sources.base. Called by worker.sources.redis_streams.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from worker.sources.base import Budget


class ReceivePlan:
    """Equal shares for all tenants with room; a rotating window of them when there are more tenants than room.

    Args:
        max_message_bytes: the most that one message may bring, which is what the byte budget must assume of each.
    """

    def __init__(self, *, max_message_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._start = 0

    def next(self, budget: Budget, tenants: Sequence[str]) -> dict[int, list[str]]:
        """Plan one receive.

        A stream's COUNT applies to every stream of its command, so tenants are grouped by it. Shares are rounded down
        to powers of two, which bounds the commands of one receive to about twenty however the quotas lie.

        Args:
            budget: what may come in, in all and by tenant.
            tenants: whom to read; each has a quota of at least 1 in the budget.

        Returns:
            Tenants by the number of messages to ask each for; their sum never exceeds the budget.
        """
        room = min(budget.jobs, budget.bytes // self._max_message_bytes)
        window = self._window(tenants, room)
        shares: dict[int, list[str]] = defaultdict(list)
        for tenant in window:
            share = min(room // len(window), budget.tenants[tenant])
            shares[1 << (share.bit_length() - 1)].append(tenant)
        return dict(shares)

    def _window(self, tenants: Sequence[str], room: int) -> list[str]:
        if len(tenants) <= room:
            return list(tenants)
        self._start = (self._start + room) % len(tenants)
        return [*tenants[self._start :], *tenants[: self._start]][:room]
