"""Telling a tenant that a job has ended, so that it need not look all the time: what a notice says, and when to try.

A notice is a courtesy. It is sent after the result is stored and before its message is acknowledged, so a crash repeats
it and does not lose it; but a notice that cannot be sent is counted and forgotten, and delays no job. Its reader looks
at the object, as it would without. Everything in it is public (docs/threat-model.md, statement 12).

May import: the standard library, structlog, mrgc.errors, worker.backoff. Called by the intake.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

import structlog

from mrgc.errors import MrgcError
from worker.backoff import Backoff

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
#: Status of a job that was dead-lettered; the others are those of docs/spec.md §4.
REFUSED: Final = "refused"

_log = structlog.get_logger()


class Notice(NamedTuple):
    """One job that has ended."""

    tenant: str
    #: 32 hex digits.
    job: str
    #: SHA-256 of the sealed job, 64 hex digits.
    request: str
    #: ok, partial, failed, or refused.
    status: str
    #: URL of the result object, or of the hint beside it.
    object: str

    @classmethod
    def of(cls, tenant: str, object_url: str, status: str) -> Notice:
        """Make the notice of a job from the name of its object (docs/spec.md §4)."""
        _, job, name = object_url.rsplit("/", 2)
        return cls(tenant, job, name.partition(".")[0], status, object_url)


class Notifier(Protocol):
    """A way to tell tenants."""

    def publish(self, notices: Sequence[Notice]) -> int:
        """Send notices, each to its tenant.

        Returns:
            How many were not taken.

        Raises:
            QueueUnavailable: none was taken, as far as is known.
        """
        ...

    def close(self) -> None:
        """Close connections."""
        ...


class Announcer:
    """Sends notices while that works, and lets it be for a while when it does not. Safe to share between threads.

    Args:
        notifier: the way; None where notices are off.
        count: told how many were `sent` or `lost`.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        notifier: Notifier | None,
        *,
        count: Callable[[str, int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._notifier = notifier
        self._count = count
        self._clock = clock
        self._lock = threading.Lock()
        self._paused_until_s = float("-inf")
        self._backoff = Backoff(base_s=FIRST_PAUSE_S, cap_s=LONGEST_PAUSE_S)

    def announce(self, notices: Sequence[Notice]) -> None:
        """Try to send notices, once; never raises what a broker can raise."""
        if self._notifier is None or not notices:
            return
        lost = len(notices)
        if self._clock() >= self._paused_until_s:
            try:
                lost = self._notifier.publish(notices)
            except MrgcError as err:
                self._pause(err)
            else:
                self._backoff.reset()
        self._count("sent", len(notices) - lost)
        self._count("lost", lost)

    def close(self) -> None:
        """Close the notifier."""
        if self._notifier is not None:
            self._notifier.close()

    def _pause(self, error: MrgcError) -> None:
        with self._lock:
            pause_s = self._backoff.next_s()
            self._paused_until_s = self._clock() + pause_s
        _log.warning("notices cannot be sent", retry_s=round(pause_s, 3), exc_info=error)
