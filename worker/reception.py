"""What was received becomes jobs: read each message, fetch what a claim check names, admit it or refuse it.

Runs on the receiver's thread for what is inline, and on the settler's loop for what was fetched. Whatever a message
holds, it ends in a job or in a dead letter and never in an exception.

May import: the standard library, structlog, mrgc.errors, worker. Called by the intake.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import structlog

from mrgc.errors import InternalError, PoisonError, from_code
from worker.admission import Admission, Capacity, Refused
from worker.job import Job
from worker.registry import Registry
from worker.settle import Settler
from worker.sources.base import BadMessage, ClaimCheck, Lease
from worker.suspects import POISON_DEATHS

_log = structlog.get_logger()


class Reception:
    """Turns held leases into admitted jobs.

    Args:
        admission: the rules.
        registry: who may send what.
        settler: fetches claim checks, and takes what is refused.
        capacity: what the engines serve now.
        admitted: takes jobs; must not block.
    """

    def __init__(
        self,
        admission: Admission,
        registry: Registry,
        settler: Settler,
        *,
        capacity: Callable[[], Capacity],
        admitted: Callable[[Sequence[Job]], None],
    ) -> None:
        self._admission = admission
        self._registry = registry
        self._settler = settler
        self._capacity = capacity
        self._admitted = admitted

    def take(self, leases: Sequence[Lease]) -> None:
        """Admit, refuse or begin to fetch each of these messages."""
        capacity = self._capacity()
        self._admitted([job for lease in leases if (job := self._safely(lease, capacity)) is not None])

    def _safely(self, lease: Lease, capacity: Capacity) -> Job | None:
        try:
            return self._read(lease, capacity)
        except Refused as refused:
            self._refuse(lease, refused)
        except Exception as err:  # noqa: BLE001  no message ends the receive loop, not even through our own bug
            _log.error("message could not be read", tenant=lease.tenant, exc_info=err)
            self._refuse(lease, Refused(InternalError()))
        return None

    def _read(self, lease: Lease, capacity: Capacity) -> Job | None:
        match lease.body:
            case BadMessage(code):
                raise Refused(from_code(code))
            case ClaimCheck() as check:
                self._admission.ensure_claim(check, self._registry.get(lease.tenant))
                self._settler.fetch(lease, check, lambda body: self._take_fetched(lease, body, check))
                return None
            case bytes(body):
                return self._admit(lease, body, capacity)

    def _take_fetched(self, lease: Lease, body: bytes, check: ClaimCheck) -> None:
        try:
            self._admission.ensure_body(body, check)
            self._admitted([self._admit(lease, body, self._capacity())])
        except Refused as refused:
            self._refuse(lease, refused)

    def _admit(self, lease: Lease, body: bytes, capacity: Capacity) -> Job:
        if lease.deaths >= POISON_DEATHS:
            raise Refused(PoisonError())
        tenant = self._registry.get(lease.tenant)
        return self._admission.admit(lease, body, tenant=tenant, capacity=capacity, unix_s=time.time())

    def _refuse(self, lease: Lease, refused: Refused) -> None:
        hint_url = f"{refused.object_url}.refused" if refused.object_url is not None else None
        self._settler.dead_letter(lease, code=refused.error.code, hint_url=hint_url)
