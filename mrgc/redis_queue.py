"""A tenant's queue at Redis: XADD to its stream (docs/spec.md §5).

Called by `mrgc.client_parts`. May import: redis, the standard library, mrgc.errors, mrgc.wire, mrgc.job_queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import redis
from redis.backoff import FullJitterBackoff
from redis.retry import Retry

from mrgc.errors import ConfigError, QueueUnavailable
from mrgc.job_queue import ClaimCheck
from mrgc.wire import strict_cbor

_SCHEMES: Final = ("redis", "rediss", "unix")
_CONNECT_TIMEOUT_S: Final = 5.0
_REPLY_TIMEOUT_S: Final = 15.0  #: A pipeline of 4 MiB on a slow line, and an fsync of the server.
_RETRIES: Final = 4
_BACKOFF_BASE_S: Final = 0.1
_BACKOFF_CAP_S: Final = 2.0


class RedisQueue:
    """One tenant's stream, "q:" ‖ tenant.

    Args:
        url: redis://, rediss:// or unix://, as redis-py takes it.
        tenant: the name that the stream is called by.

    Raises:
        ConfigError: the URL is malformed, or of a kind that this version cannot send to.
    """

    def __init__(self, url: str, *, tenant: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in _SCHEMES:
            raise ConfigError(
                f"MRGC_QUEUE_URL is neither a {', '.join(_SCHEMES)} URL nor the https URL of an SQS queue"
            )
        self._stream = f"q:{tenant}"
        try:
            # The URL may hold a password: error texts name the place only.
            self._place = parts.path if parts.scheme == "unix" else f"{parts.hostname}:{parts.port or 6379}"
            self._redis = redis.Redis.from_url(
                url,
                socket_connect_timeout=_CONNECT_TIMEOUT_S,
                socket_timeout=_REPLY_TIMEOUT_S,
                retry=Retry(FullJitterBackoff(cap=_BACKOFF_CAP_S, base=_BACKOFF_BASE_S), _RETRIES),
            )
        except (ValueError, TypeError, redis.RedisError):
            raise ConfigError("MRGC_QUEUE_URL is malformed") from None

    def send(self, messages: Sequence[bytes | ClaimCheck]) -> None:
        """Append messages in order, in one round trip."""
        pipeline = self._redis.pipeline(transaction=False)
        for message in messages:
            # No MAXLEN: a stream that is full must refuse a job, never drop an older one.
            pipeline.xadd(self._stream, {b"job": message} if isinstance(message, bytes) else {b"ref": _ref(message)})
        try:
            answers = pipeline.execute(raise_on_error=False)
        except (redis.RedisError, OSError) as error:
            answers = [error]
        for answer in answers:
            if isinstance(answer, Exception):
                # The class says it all (OutOfMemoryError, NoPermissionError, TimeoutError); texts quote the command.
                reason = type(answer).__name__
                raise QueueUnavailable(f"queue at {self._place} did not take the jobs: {reason}") from answer

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()


def _ref(check: ClaimCheck) -> bytes:
    return strict_cbor.encode({"url": check.url, "sha256": check.sha256, "bytes": check.size_bytes})
