"""What a client talks to, each part made at its first use: opening a fetched result needs no queue.

Called by `mrgc.client`. May import: the standard library and the tenant's modules of mrgc.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from mrgc.client_settings import ClientSettings
from mrgc.data_keys import DataKeys
from mrgc.errors import ConfigError
from mrgc.job_queue import JobQueue
from mrgc.redis_queue import RedisQueue
from mrgc.result_store import ResultStore
from mrgc.sqs_queue import SqsQueue
from mrgc.submitted import SubmittedJobs
from mrgc.tenant_kms import TenantKms
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

    @property
    def kms_calls(self) -> int:
        """Calls made to KMS so far; asking makes no connection."""
        return self.kms.calls if "kms" in self.__dict__ else 0

    def close(self) -> None:
        """Zero the data keys and close every connection; a part used again is made again."""
        for name in ("keys", "kms", "queue", "store", "records"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()
