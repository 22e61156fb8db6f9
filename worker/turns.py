"""Whose turn it is, by weight: surplus round robin, the form of deficit round robin that needs no look-ahead. Pure.

Everyone has a credit in bytes. Who has credit is served, and pays; when nobody has, everybody gets the same number of
turns times the weight. A newcomer has one byte of credit, so its first job waits for nobody's whole turn; what it owes
when it runs empty it still owes when it comes back, until nobody else waits.

May import: the standard library. Called by worker.batcher.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

#: Credit of one turn at weight 1: a few jobs of ordinary size, so that one batch serves several tenants.
QUANTUM_BYTES: Final = 64 << 10
NEWCOMERS_CREDIT_BYTES: Final = 1

K = TypeVar("K", bound=Hashable)


class Turns(Generic[K]):
    """A ring of those who wait.

    Args:
        weight_of: a share against the others'; asked at every payment, so a changed weight counts at once.
    """

    def __init__(self, weight_of: Callable[[K], int]) -> None:
        self._weight_of = weight_of
        #: Credits above zero, and the others; the order of the first is whose turn it is.
        self._ready: OrderedDict[K, int] = OrderedDict()
        self._spent: dict[K, int] = {}
        self._debts: dict[K, int] = {}

    def __len__(self) -> int:
        return len(self._ready) + len(self._spent)

    def join(self, who: K) -> None:
        """Add one who begins to wait."""
        credit = self._debts.pop(who, NEWCOMERS_CREDIT_BYTES)
        (self._ready if credit > 0 else self._spent)[who] = credit

    def next(self) -> K:
        """Return whose turn it is. Somebody waits."""
        if not self._ready:
            self._pay()
        return next(iter(self._ready))

    def charge(self, who: K, cost_bytes: int) -> None:
        """Let one whose turn it was pay."""
        credit = self._ready[who] - cost_bytes
        if credit > 0:
            self._ready[who] = credit
        else:
            del self._ready[who]
            self._spent[who] = credit

    def pass_on(self, who: K) -> None:
        """Let the others go first."""
        if who in self._ready:
            self._ready.move_to_end(who)

    def leave(self, who: K) -> None:
        """Take out one who waits no more."""
        credit = self._ready.pop(who, 0) or self._spent.pop(who)
        if not len(self):
            self._debts.clear()
        elif credit <= 0:
            # Without this, one that sends a single huge job at a time would never pay for any.
            self._debts[who] = credit

    def _pay(self) -> None:
        """Give everybody the same number of turns, the fewest that bring one of them above zero."""
        if len(self._spent) == 1:
            # Nobody competes, so nobody owes anything.
            self._spent = dict.fromkeys(self._spent, 0)
        quanta = {who: QUANTUM_BYTES * self._weight_of(who) for who in self._spent}
        turns = min(-credit // quanta[who] + 1 for who, credit in self._spent.items())
        paid = {who: credit + turns * quanta[who] for who, credit in self._spent.items()}
        self._ready.update((who, credit) for who, credit in paid.items() if credit > 0)
        self._spent = {who: credit for who, credit in paid.items() if credit <= 0}
