"""The sending end of a tenant's queue: XADD to its Redis stream (docs/spec.md §5).

Called by `mrgc.client`. May import: redis, the standard library, mrgc.errors, mrgc.wire.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import redis
from redis.backoff import FullJitterBackoff
from redis.retry import Retry

from mrgc.errors import ConfigError, QueueUnavailable
from mrgc.wire import strict_cbor

MAX_INLINE_BYTES: Final = 524_288  #: docs/spec.md §5: a longer sealed job travels as a claim check.
#: One fsync of the record and one round trip to the broker serve this many jobs, or this many bytes.
SEND_JOBS: Final = 64
SEND_BYTES: Final = 4 << 20
_REDIS_SCHEMES: Final = ("redis", "rediss", "unix")
_CONNECT_TIMEOUT_S: Final = 5.0
_REPLY_TIMEOUT_S: Final = 15.0  #: A pipeline of 4 MiB on a slow line, and an fsync of the server.
_RETRIES: Final = 4
_BACKOFF_BASE_S: Final = 0.1
_BACKOFF_CAP_S: Final = 2.0


class ClaimCheck(NamedTuple):
    """Where the bytes of a long sealed job are."""

    #: s3://bucket/key.
    url: str
    #: Of the whole object; equal to the job's `request`.
    sha256: bytes
    size_bytes: int


class JobQueue:
    """One tenant's stream, "q:" ‖ tenant.

    Args:
        url: redis://, rediss:// or unix://, as redis-py takes it.
        tenant: the name that the stream is called by.

    Raises:
        ConfigError: the URL is missing, malformed, or of a kind that this version cannot send to.
    """

    def __init__(self, url: str, *, tenant: str) -> None:
        if not url:
            raise ConfigError("MRGC_QUEUE_URL is not set")
        parts = urlsplit(url)
        if parts.scheme not in _REDIS_SCHEMES:
            raise ConfigError(f"MRGC_QUEUE_URL is not a {', '.join(_REDIS_SCHEMES)} URL; other queues are not served")
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
        """Append messages in order, in one round trip.

        A lost reply makes redis-py send the pipeline again, so a message may be in the stream twice. That costs the
        service time and changes nothing: the same sealed job has one result object, create-only (docs/spec.md §4).

        Args:
            messages: sealed jobs of at most 524,288 bytes, or claim checks of longer ones.

        Raises:
            QueueUnavailable: the broker did not confirm; any number of the messages may be in the stream.
        """
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


def batches(sealed_jobs: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Group sealed jobs, as they come, into what one record transaction and one `send` carry."""
    batch: list[bytes] = []
    batch_bytes = 0
    for sealed in sealed_jobs:
        batch.append(sealed)
        batch_bytes += len(sealed)
        if len(batch) == SEND_JOBS or batch_bytes >= SEND_BYTES:
            yield batch
            batch, batch_bytes = [], 0
    if batch:
        yield batch
