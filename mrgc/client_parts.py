"""What a client talks to, each part made at its first use: opening a fetched result needs no queue.

Called by `mrgc.client`. May import: the standard library and the tenant's modules of mrgc.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from mrgc.client_settings import ClientSettings
from mrgc.data_keys import DataKeys
from mrgc.done_stream import DoneStream
from mrgc.errors import ConfigError
from mrgc.job_queue import JobQueue
from mrgc.redis_queue import RedisQueue
from mrgc.result_store import ResultStore
from mrgc.sqs_queue import SqsQueue
from mrgc.submitted import SubmittedJobs
from mrgc.tenant_kms import TenantKms
from mrgc.waiting import LookSchedule, Rest
from mrgc.wire.queue_urls import is_sqs


@dataclass(frozen=True, slots=True)
class Clock:
    """Time as the client sees it; a value, so that a test need not wait for it."""

    #: Unix seconds.
    now: Callable[[], float] = time.time
    #: Seconds that no one sets back.
    monotonic: Callable[[], float] = time.monotonic
    #: Sleeps for a number of seconds.
    rest: Callable[[float], None] = time.sleep


class ClientParts:
    """The connections, files and keys of one client.

    Reading a property may raise ConfigError, if the setting behind that part is missing or malformed.
    """

    def __init__(self, settings: ClientSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock

    @cached_property
    def kms(self) -> TenantKms:
        """The tenant's KMS key."""
        return TenantKms(self._settings.key_arn, self._settings.aws)

    @cached_property
    def keys(self) -> DataKeys:
        """The plain data keys in memory."""
        return DataKeys(self.kms, tenant=self._settings.tenant, clock=self._clock.monotonic)

    @cached_property
    def records(self) -> SubmittedJobs:
        """The record of submitted jobs."""
        return SubmittedJobs(self._settings.state)

    @cached_property
    def queue(self) -> JobQueue:
        """The tenant's queue."""
        settings = self._settings
        if not settings.queue_url:
            raise ConfigError("MRGC_QUEUE_URL is not set")
        if is_sqs(settings.queue_url):
            return SqsQueue(settings.queue_url, tenant=settings.tenant, aws=settings.aws)
        return RedisQueue(settings.queue_url, tenant=settings.tenant)

    @cached_property
    def store(self) -> ResultStore:
        """Where results appear."""
        return ResultStore(self._settings.results_url, self._settings.aws)

    @cached_property
    def notices(self) -> DoneStream | None:
        """Where the service says which jobs have ended; None where the queue has no notices."""
        settings = self._settings
        if not settings.queue_url or is_sqs(settings.queue_url):
            return None
        clock = self._clock
        return DoneStream(settings.queue_url, tenant=settings.tenant, monotonic=clock.monotonic, rest=clock.rest)

    def rest(self, schedule: LookSchedule) -> Rest:
        """Return how to rest between the looks of one wait: hearing notices where there are any."""
        notices = self.notices
        if notices is not None:
            return notices.listener(schedule.first_created_s, is_wanted=schedule.is_pending)

        def only_rest(seconds: float) -> Iterable[bytes]:
            self._clock.rest(seconds)
            return ()

        return only_rest

    @property
    def kms_calls(self) -> int:
        """Calls made to KMS so far; asking makes no connection."""
        return self.kms.calls if "kms" in self.__dict__ else 0

    def close(self) -> None:
        """Zero the data keys and close every connection; a part used again is made again."""
        for name in ("keys", "kms", "queue", "notices", "store", "records"):
            part = self.__dict__.pop(name, None)
            if part is not None:
                part.close()
