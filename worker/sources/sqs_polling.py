"""Which queue the next ReceiveMessage asks, for how many messages, and how long it waits: pure policy.

A queue that gave messages is asked again at once, and by more receivers than one while its answers are full. With few
queues each is asked by long polls, and one receiver is always left for each of them. With many, a long poll each would
need a thread each, so nobody waits: an empty queue is asked ever more rarely, and a thousand idle tenants cost a
bounded number of calls.

May import: the standard library, worker.sources.sqs_layout. Called by worker.sources.sqs_inbox, under its lock.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from worker.sources.sqs_layout import MAX_ENTRIES

#: Pauses before an empty queue is asked again, when there are too many for long polls.
FIRST_REST_S: Final = 0.25
LONGEST_REST_S: Final = 20.0
#: After an answer that was not full: what a busy sender adds meanwhile shares the next call.
GATHER_S: Final = 0.01
#: Between calls that may bring fewer than a full answer, because the host is nearly at its bounds.
SMALL_REST_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Poll:
    """One ReceiveMessage."""

    #: Whose queue; empty for the one that all tenants share.
    tenant: str
    count: int
    wait_s: int
    #: Whether the queue was being asked already.
    is_extra: bool = False


@dataclass(slots=True)
class _Queue:
    in_flight: int = 0
    #: The pause after the last answer, if it was empty.
    rest_s: float = 0.0
    #: Its last answer had as many messages as were asked for.
    is_full: bool = False
    last_s: float = float("-inf")


class PollPlan:
    """The turns of all queues.

    Args:
        receivers: calls at once. Half of them are kept for first calls, so up to that many queues get long polls.
        wait_s: of a long poll.
    """

    def __init__(self, *, receivers: int, wait_s: int) -> None:
        self._long_polls = receivers // 2
        self._extras_left = receivers - self._long_polls
        self._wait_s = wait_s
        self._queues: dict[str, _Queue] = {}
        #: Queues to be asked as soon as there is room; the order of the dict is whose turn it is.
        self._ring: dict[str, None] = {}
        #: (monotonic second, tie-breaker, tenant) of those that rest; void once the tenant is in the ring or gone.
        self._resting: list[tuple[float, int, str]] = []
        self._ties = itertools.count()

    def follow(self, tenants: Iterable[str]) -> None:
        """Ask the queues of these tenants from now on, and of no others."""
        wanted = set(tenants)
        if wanted == self._queues.keys():
            return
        for tenant in self._queues.keys() - wanted:
            del self._queues[tenant]
            self._ring.pop(tenant, None)
        for tenant in sorted(wanted - self._queues.keys()):
            self._queues[tenant] = _Queue()
            self._ring[tenant] = None

    def follows(self, tenant: str) -> bool:
        """Return whether a tenant's queue is asked."""
        return tenant in self._queues

    def next(self, room: int, *, room_of: Callable[[str], int], now_s: float) -> Poll | None:
        """Choose the next call.

        Args:
            room: how many messages may still come in.
            room_of: how many of one tenant.
            now_s: monotonic seconds.

        Returns:
            The call, which the caller makes and reports; None when there is none to make now.
        """
        self._wake(now_s)
        # A long poll keeps its room for seconds, so it gets a share of it only.
        share = room // len(self._queues) if 0 < len(self._queues) <= self._long_polls else 0
        for tenant in self._ring:
            queue = self._queues[tenant]
            count = min(MAX_ENTRIES, room, share or room, room_of(tenant))
            if count < 1 or (count < MAX_ENTRIES and now_s < queue.last_s + SMALL_REST_S):
                continue
            is_extra = queue.in_flight > 0
            if is_extra and not self._extras_left:
                continue
            del self._ring[tenant]
            if queue.is_full:
                # To the tail: another receiver may ask it too, after the other queues.
                self._ring[tenant] = None
            queue.in_flight += 1
            queue.last_s = now_s
            self._extras_left -= is_extra
            return Poll(tenant, count, self._wait_s if share else 0, is_extra)
        return None

    def due_in_s(self, now_s: float) -> float:
        """Return how long no resting queue becomes due; the caller also wakes when there is room."""
        if self._ring:
            return SMALL_REST_S
        return max(0.0, self._resting[0][0] - now_s) if self._resting else LONGEST_REST_S

    def answered(self, poll: Poll, received: int, *, now_s: float) -> None:
        """Note what a call brought."""
        queue = self._ended(poll)
        if queue is None:
            return
        queue.is_full = received >= poll.count
        if received:
            queue.rest_s = 0.0
            self._rest(poll.tenant, 0.0 if queue.is_full else GATHER_S, now_s)
        elif poll.wait_s:
            self._rest(poll.tenant, 0.0, now_s)
        else:
            self._rest_longer(poll.tenant, queue, now_s)

    def failed(self, poll: Poll, *, for_long: bool, now_s: float) -> None:
        """Note that a call failed; `for_long` when nobody can mend that but a person."""
        queue = self._ended(poll)
        if queue is None:
            return
        queue.is_full = False
        if for_long:
            queue.rest_s = LONGEST_REST_S / 2
        self._rest_longer(poll.tenant, queue, now_s)

    def _ended(self, poll: Poll) -> _Queue | None:
        self._extras_left += poll.is_extra
        queue = self._queues.get(poll.tenant)
        if queue is not None:
            queue.in_flight = max(0, queue.in_flight - 1)
        return queue

    def _rest_longer(self, tenant: str, queue: _Queue, now_s: float) -> None:
        queue.rest_s = min(LONGEST_REST_S, 2 * queue.rest_s or FIRST_REST_S)
        self._rest(tenant, queue.rest_s, now_s)

    def _rest(self, tenant: str, pause_s: float, now_s: float) -> None:
        queue = self._queues[tenant]
        if pause_s == 0.0:
            self._ring.setdefault(tenant)
            return
        self._ring.pop(tenant, None)
        if not queue.in_flight:
            heapq.heappush(self._resting, (now_s + pause_s, next(self._ties), tenant))

    def _wake(self, now_s: float) -> None:
        while self._resting and self._resting[0][0] <= now_s:
            _, _, tenant = heapq.heappop(self._resting)
            queue = self._queues.get(tenant)
            if queue is not None and not queue.in_flight:
                self._ring.setdefault(tenant)
