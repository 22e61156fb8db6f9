"""Which of the things that the intake depends on are failing, and how much to receive meanwhile: pure policy.

An outage of engine, enclave, KMS, store or broker counts against no job. It closes the intake for a growing, jittered
time; then a few jobs are let in, and the first success opens it again. A tenant's own KMS failing closes it for that
tenant only, and one job that fails for ever, while others succeed, closes it for nobody. Whether KMS fails one tenant
or all is told by the others: as long as nobody is served, it is all.

May import: the standard library, mrgc.errors, worker.backoff. Called by the intake. Safe to share between threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from mrgc.errors import KeyBusyError, MrgcError, QueueUnavailable, StoreUnavailable
from worker.backoff import Backoff

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 15.0

_ENGINE: Final = "engine"
#: Errors that name what failed; every other one came through the engine.
_SCOPES: Final = {StoreUnavailable.code: "store", QueueUnavailable.code: "queue"}


@dataclass(slots=True)
class _Outage:
    code: str
    began_s: float
    closed_until_s: float
    backoff: Backoff = field(default_factory=lambda: Backoff(base_s=FIRST_PAUSE_S, cap_s=LONGEST_PAUSE_S))


@dataclass(frozen=True, slots=True)
class Gate:
    """How open the intake is at one moment."""

    #: False: nothing is received.
    is_open: bool
    #: True: only enough is received to see whether the outage is over.
    is_probing: bool
    #: Tenants that nothing is received from.
    closed_tenants: frozenset[str]


class Outages:
    """What fails now.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._shared: dict[str, _Outage] = {}
        self._tenants: dict[str, _Outage] = {}
        self._served_s = float("-inf")

    def failed(self, error: MrgcError, *, tenant: str | None = None) -> bool:
        """Note an error that asks for a retry.

        Args:
            error: what happened.
            tenant: whose job met it, if it was one.

        Returns:
            Whether this is the beginning of an outage, worth a line in the log.
        """
        with self._lock:
            if isinstance(error, KeyBusyError) and tenant is not None:
                return self._close(self._tenants, tenant, error.code)
            return self._close(self._shared, _SCOPES.get(error.code, _ENGINE), error.code)

    def served(self, *, tenant: str) -> None:
        """Note that engine, enclave and this tenant's KMS answered with a verdict."""
        with self._lock:
            self._shared.pop(_ENGINE, None)
            self._tenants.pop(tenant, None)
            self._served_s = self._clock()

    def stored(self) -> None:
        """Note that the store took an object or gave one."""
        with self._lock:
            self._shared.pop(_SCOPES[StoreUnavailable.code], None)

    def received(self) -> None:
        """Note that the broker answered."""
        with self._lock:
            self._shared.pop(_SCOPES[QueueUnavailable.code], None)

    def gate(self) -> Gate:
        """Return how open the intake is now."""
        now_s = self._clock()
        with self._lock:
            return Gate(
                is_open=all(outage.closed_until_s <= now_s for outage in self._shared.values()),
                is_probing=bool(self._shared),
                closed_tenants=frozenset(
                    name for name, outage in self._tenants.items() if outage.closed_until_s > now_s
                ),
            )

    def codes(self) -> list[str]:
        """Return the codes of the outages that every tenant feels, as far as is known, for /readyz."""
        with self._lock:
            unserved = (outage for outage in self._tenants.values() if outage.began_s >= self._served_s)
            return sorted({outage.code for outage in (*self._shared.values(), *unserved)})

    def _close(self, outages: dict[str, _Outage], scope: str, code: str) -> bool:
        now_s = self._clock()
        begins = scope not in outages
        outage = outages.setdefault(scope, _Outage(code, now_s, now_s))
        outage.code = code
        # The jobs of one batch fail together; only the first of them lengthens the pause.
        if outage.closed_until_s <= now_s:
            outage.closed_until_s = now_s + outage.backoff.next_s()
        return begins
