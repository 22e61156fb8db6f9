"""How often and how widely one tenant may make the enclave call KMS: pure policy (docs/spec.md §7).

A tenant that sends every job under a key of its own costs KMS quota and threads that belong to all. Its calls are
limited in rate, and at most a few are in flight; the rest of its own wait in its own line. Lines are bounded: while KMS
does not answer, calls come at their rate and leave at one every few seconds.

Called by `enclave.kms_calls`, which holds the lock. May import: the standard library.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

CALLS_PER_S: Final = 50.0  #: Of one tenant; KMS grants an account 5,500 and more. One that keeps to epochs needs few.
BURST_CALLS: Final = 256.0  #: Four cold batches of 64 jobs, each with a key of its own.
LANES: Final = 2  #: Calls of one tenant in flight, of the 16 of `enclave.kms_calls`.
#: Calls of one tenant that wait for a lane: its whole burst. Two lanes at 50 ms a call make them within the 10 s that
#: anybody waits (`enclave.kms_calls`); with more, a tenant back from an outage would wait behind calls nobody wants.
MAX_LINE: Final = 256
MAX_WAITING: Final = 4_096  #: Calls of all tenants that wait for a lane; with wrapped keys and contexts, 40 MiB.
MAX_TENANTS: Final = 4_096  #: Tenants remembered; beyond, calls are refused until one has been quiet for 5.2 s.

Call = TypeVar("Call")


@dataclass(slots=True)
class _Tenant(Generic[Call]):
    tokens: float
    updated_s: float
    active: int = 0
    waiting: deque[Call] = field(default_factory=deque)

    def refill(self, now_s: float) -> None:
        self.tokens = min(BURST_CALLS, self.tokens + (now_s - self.updated_s) * CALLS_PER_S)
        self.updated_s = now_s

    def is_idle(self) -> bool:
        return self.active == 0 and self.tokens >= BURST_CALLS


class KmsBudget(Generic[Call]):
    """Token bucket and lanes for each tenant."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant[Call]] = {}
        self._waiting = 0

    def admit(self, tenant: str, now_s: float) -> bool:
        """Spend one call of the tenant's rate; False when none is left, or when the call would wait in a full line."""
        account = self._tenants.get(tenant)
        if account is None:
            if len(self._tenants) >= MAX_TENANTS:
                self._forget_idle(now_s)
            if len(self._tenants) >= MAX_TENANTS:
                return False
            account = self._tenants[tenant] = _Tenant(BURST_CALLS, now_s)
        account.refill(now_s)
        if account.tokens < 1 or (account.active >= LANES and self._is_full(account)):
            return False
        account.tokens -= 1
        return True

    def begin(self, tenant: str, call: Call) -> bool:
        """Take a lane for an admitted call; False when it waits in the tenant's line instead."""
        account = self._tenants[tenant]
        if account.active < LANES:
            account.active += 1
            return True
        account.waiting.append(call)
        self._waiting += 1
        return False

    def end(self, tenant: str) -> Call | None:
        """Leave a lane; the returned call of the same tenant has taken it over and is to be made now."""
        account = self._tenants[tenant]
        if account.waiting:
            self._waiting -= 1
            return account.waiting.popleft()
        account.active -= 1
        return None

    def _is_full(self, account: _Tenant[Call]) -> bool:
        return len(account.waiting) >= MAX_LINE or self._waiting >= MAX_WAITING

    def _forget_idle(self, now_s: float) -> None:
        for tenant, account in list(self._tenants.items()):
            account.refill(now_s)
            if account.is_idle():
                del self._tenants[tenant]
