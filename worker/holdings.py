"""What this host holds, from receive to ack: the table of leases and the bounds that back-pressure rests on.

At a bound nothing is received, so a slow engine or store makes the queue grow, never this process.

May import: the standard library, worker.sources.base. Called by the intake. Safe to share between threads.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping

from worker.sources.base import Budget, Lease


class Holdings:
    """Leases held now, by message.

    Args:
        max_jobs: most leases at once.
        max_bytes: most bytes of their messages at once.
    """

    def __init__(self, *, max_jobs: int, max_bytes: int) -> None:
        self._max_jobs = max_jobs
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        #: Lease, bytes of its message, monotonic second of its receipt.
        self._held: dict[tuple[str, str], tuple[Lease, int, float]] = {}
        self._bytes = 0
        self._tenants: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def bytes(self) -> int:
        """Bytes of all held messages."""
        return self._bytes

    def add(self, lease: Lease, *, size_bytes: int) -> bool:
        """Hold a lease.

        Returns:
            False if its message is held already: our own lease lapsed and came back to us. The work in progress goes
            on under the newer delivery.
        """
        with self._changed:
            known = self._held.get(lease.key)
            if known is not None:
                known[0].deadline_s, known[0].handle = lease.deadline_s, lease.handle
                return False
            self._held[lease.key] = lease, size_bytes, time.monotonic()
            self._bytes += size_bytes
            self._tenants[lease.tenant] += 1
            return True

    def holds(self, lease: Lease) -> bool:
        """Return whether this very lease is held, not a later one of the same message."""
        known = self._held.get(lease.key)
        return known is not None and known[0] is lease

    def remove(self, lease: Lease) -> float | None:
        """Let go of a lease.

        Returns:
            Seconds that it was held; None if it is not held any more, which changes nothing.
        """
        with self._changed:
            if not self.holds(lease):
                return None
            _, size_bytes, since_s = self._held.pop(lease.key)
            self._bytes -= size_bytes
            self._tenants[lease.tenant] -= 1
            self._changed.notify_all()
            return time.monotonic() - since_s

    def leases(self) -> list[Lease]:
        """Return all held leases."""
        with self._changed:
            return [lease for lease, _, _ in self._held.values()]

    def forget(self, *, older_than_s: float) -> list[Lease]:
        """Let go of leases that are held for too long, and return them."""
        horizon_s = time.monotonic() - older_than_s
        with self._changed:
            old = [lease for lease, _, since_s in self._held.values() if since_s < horizon_s]
        for lease in old:
            self.remove(lease)
        return old

    def budget(self, quotas: Mapping[str, int], *, max_jobs: int) -> Budget:
        """Return what may still be received.

        Args:
            quotas: the most jobs to hold, by tenant that may be received from.
            max_jobs: a lower bound on jobs than the table's own.
        """
        with self._changed:
            return Budget(
                jobs=max(0, min(self._max_jobs, max_jobs) - len(self._held)),
                bytes=max(0, self._max_bytes - self._bytes),
                tenants={tenant: max(0, quota - self._tenants[tenant]) for tenant, quota in quotas.items()},
            )

    def wait_change(self, timeout_s: float) -> None:
        """Wait until a lease is let go."""
        with self._changed:
            self._changed.wait(timeout_s)

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until nothing is held; returns whether that happened."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._held, timeout_s)
