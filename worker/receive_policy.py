"""Whether the receiver asks the broker or waits for a held job to end: pure policy.

May import: the standard library, worker.sources. Called by worker.intake.
"""

from __future__ import annotations

from typing import Final

from worker.sources.base import Budget
from worker.sources.messages import MAX_MESSAGE_BYTES

#: Longest wait of one receive for a first message; also how soon a receive notices that it must stop.
RECEIVE_WAIT_S: Final = 0.25
#: Room for less than this part of what is held is not worth a request, unless it is room for a batch: a third.
WORTHWHILE: Final = 3


def receive_wait_s(budget: Budget, *, held_jobs: int, batch_jobs: int) -> float | None:
    """Return how long the next receive may wait for its first message; None: rather wait for a held job to end.

    A host that is nearly full asks for a batch at a time: the jobs that it holds keep its engines busy meanwhile, and
    every request costs the broker and us the same, however little it brings. While a tenant is at its own bound, its
    next room comes from a job that ends, so nobody waits at the broker for messages of the others.

    Args:
        budget: what may be received now.
        held_jobs: what the host holds.
        batch_jobs: most jobs of one batch.
    """
    room = min(budget.jobs, budget.bytes // MAX_MESSAGE_BYTES)
    if room < max(1, min(batch_jobs, held_jobs // WORTHWHILE)):
        return None
    return 0.0 if budget.has_full_tenant else RECEIVE_WAIT_S
