"""What this host holds, from receive to ack: the table of leases and the bounds that back-pressure rests on.

At a bound nothing is received, so a slow engine or store makes the queue grow, never this process.

May import: the standard library, mrgc.wire, worker. Called by the intake. Safe to share between threads.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from mrgc.wire.sealed import MAX_BODY_BYTES
from worker.settings import MAX_OVERHEAD_BYTES
from worker.sources.base import BadMessage, Budget, ClaimCheck, Lease


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

    def add(self, leases: Sequence[Lease]) -> list[Lease]:
        """Hold leases.

        Returns:
            Those whose messages were not held before. Of the others our own lease lapsed and came back to us; the work
            in progress goes on under the newer deadline.
        """
        now_s = time.monotonic()
        added = []
        with self._changed:
            for lease in leases:
                known = self._held.get(lease.key)
                if known is not None:
                    known[0].deadline_s = lease.deadline_s
                    continue
                size_bytes = _size_bytes(lease)
                self._held[lease.key] = lease, size_bytes, now_s
                self._bytes += size_bytes
                self._tenants[lease.tenant] += 1
                added.append(lease)
        return added

    def holds(self, lease: Lease) -> bool:
        """Return whether this very lease is held, not a later one of the same message."""
        known = self._held.get(lease.key)
        return known is not None and known[0] is lease

    def remove(self, leases: Iterable[Lease]) -> list[float]:
        """Let go of leases.

        Returns:
            Seconds that each was held; those that are not held any more change nothing and are left out.
        """
        now_s = time.monotonic()
        held_s = []
        with self._changed:
            for lease in leases:
                if self.holds(lease):
                    _, size_bytes, since_s = self._held.pop(lease.key)
                    self._bytes -= size_bytes
                    self._tenants[lease.tenant] -= 1
                    if not self._tenants[lease.tenant]:
                        del self._tenants[lease.tenant]
                    held_s.append(now_s - since_s)
            if held_s:
                self._changed.notify_all()
        return held_s

    def leases(self) -> list[Lease]:
        """Return all held leases."""
        with self._changed:
            return [lease for lease, _, _ in self._held.values()]

    def forget(self, *, older_than_s: float) -> list[Lease]:
        """Let go of leases that are held for too long, and return them."""
        horizon_s = time.monotonic() - older_than_s
        with self._changed:
            old = [lease for lease, _, since_s in self._held.values() if since_s < horizon_s]
        self.remove(old)
        return old

    def budget(self, quotas: Mapping[str, int], *, max_jobs: int) -> Budget:
        """Return what may still be received.

        Args:
            quotas: the most jobs to hold, by tenant that may be received from.
            max_jobs: a lower bound on jobs than the table's own.
        """
        # Asked before every receive, and there may be thousands of tenants: only those that hold something are counted.
        tenants, has_full_tenant = dict(quotas), False
        with self._changed:
            for tenant, count in self._tenants.items():
                if quota := tenants.get(tenant, 0):
                    tenants[tenant] = max(0, quota - count)
                    has_full_tenant |= count >= quota
            return Budget(
                jobs=max(0, min(self._max_jobs, max_jobs) - len(self._held)),
                bytes=max(0, self._max_bytes - self._bytes),
                tenants=tenants,
                has_full_tenant=has_full_tenant,
            )

    def wait_change(self, timeout_s: float) -> None:
        """Wait until a lease is let go."""
        with self._changed:
            self._changed.wait(timeout_s)

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until nothing is held; returns whether that happened."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._held, timeout_s)


def _size_bytes(lease: Lease) -> int:
    match lease.body:
        case bytes(body):
            return len(body)
        case ClaimCheck(bytes=size):
            # A length over the cap is refused before anything of it is fetched.
            return min(size, MAX_BODY_BYTES + MAX_OVERHEAD_BYTES)
        case BadMessage(received=received):
            return len(received)
