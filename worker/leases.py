"""Keeps leases alive, takes over those that lapsed elsewhere, and follows the registry file.

May import: the standard library, structlog, mrgc.errors, worker. Called by the intake, in one thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

from mrgc.errors import ConfigError, QueueUnavailable
from worker.holdings import Holdings
from worker.outages import Outages
from worker.registry import Registry
from worker.sources.base import RENEW_BELOW, Budget, JobSource, Lease

#: How often lapsed leases of any host are looked for; shorter leases are looked for more often.
RECOVERY_S: Final = 1.0
#: No message takes this long, waiting for an engine included. One that does was forgotten by a fault of ours; letting
#: its lease lapse brings it back.
MAX_HELD_S: Final = 3_600.0
#: Heartbeats in one lease. A lease is renewed at the first that finds it below RENEW_BELOW, at the latest in the middle
#: of its time, so one may be lost and the next still comes in time.
HEARTBEATS: Final = 4

_log = structlog.get_logger()


class LeaseKeeper:
    """The heartbeat of everything that is held.

    Args:
        source: the broker.
        holdings: what is held.
        outages: told when the broker fails.
        registry: read again when its file changes.
        lease_s: the lease that every host uses.
    """

    def __init__(
        self, source: JobSource, *, holdings: Holdings, outages: Outages, registry: Registry, lease_s: float
    ) -> None:
        self._source = source
        self._holdings = holdings
        self._outages = outages
        self._registry = registry
        self._renew_below_s = lease_s * RENEW_BELOW
        self._heartbeat_s = lease_s / HEARTBEATS
        self._recovery_s = min(RECOVERY_S, self._heartbeat_s)
        self._next_heartbeat_s = time.monotonic()

    def run(self, stop: threading.Event, *, budget: Callable[[], Budget], take: Callable[[list[Lease]], None]) -> None:
        """Extend and recover until `stop` is set.

        Args:
            stop: ends the loop; leases are extended until then, so a drain keeps what it finishes.
            budget: what may be taken over now; no jobs while draining.
            take: receives what was taken over.
        """
        while not stop.wait(self._recovery_s):
            self._follow_registry()
            try:
                if time.monotonic() >= self._next_heartbeat_s:
                    self._extend()
                    self._next_heartbeat_s = time.monotonic() + self._heartbeat_s
                allowed = budget()
                if allowed.jobs:
                    take(self._source.recover(allowed))
            except QueueUnavailable as err:
                if self._outages.failed(err):
                    _log.warning("broker does not answer", exc_info=err)

    def _extend(self) -> None:
        for lease in self._holdings.forget(older_than_s=MAX_HELD_S):
            _log.error("message was held too long", tenant=lease.tenant, message_id=lease.message_id)
        soon_s = time.monotonic() + self._renew_below_s
        held = self._holdings.leases()
        for lease in self._source.extend([lease for lease in held if not lease.closing and lease.deadline_s < soon_s]):
            if lease.closing:
                continue
            # Whoever holds it now finishes it; an answer that still comes here is stored too, and is the same one.
            self._holdings.remove([lease])
            _log.warning("lease lost", tenant=lease.tenant, message_id=lease.message_id)

    def _follow_registry(self) -> None:
        try:
            if self._registry.refresh():
                _log.info("registry read", tenants=len(self._registry.tenants))
        except ConfigError as err:
            _log.error("registry is wrong; the last good one stays in force", reason=str(err), exc_info=err)
