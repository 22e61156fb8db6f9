"""Resting with an ear open: the service's notices of ended jobs, the Redis stream "done:" ‖ tenant (docs/spec.md §5).

A notice says where to look, and nothing else: whoever hears one reads and authenticates the result as if none had come.
Where there are no notices, or no right to read them, or no connection, a rest is only a rest.

Called by `mrgc.client_parts`. May import: redis, the standard library, mrgc.errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from mrgc.errors import ConfigError

_CONNECT_TIMEOUT_S: Final = 2.0
#: Longest wait for an answer beyond the time that a read may block.
_REPLY_TIMEOUT_S: Final = 5.0
_LONGEST_BLOCK_S: Final = 5.0
#: After a failed read it is not tried again for so long.
_DEAF_S: Final = 15.0
_PAGE: Final = 500  #: About 150 KB.
#: Notices are stamped by the server's clock, jobs by the tenant's: how far they may differ.
_SKEW_S: Final = 600


class DoneStream:
    """One tenant's notices.

    Args:
        url: redis://, rediss:// or unix://, as redis-py takes it.
        tenant: the name that the stream is called by.
        monotonic: seconds that no one sets back.
        rest: sleeps for a number of seconds.

    Raises:
        ConfigError: the URL is malformed.
    """

    def __init__(self, url: str, *, tenant: str, monotonic: Callable[[], float], rest: Callable[[float], None]) -> None:
        self._stream = f"done:{tenant}"
        self._monotonic = monotonic
        self._rest = rest
        self._deaf_until_s = float("-inf")
        options: dict[str, Any] = {
            "protocol": 2,
            "socket_connect_timeout": _CONNECT_TIMEOUT_S,
            "socket_timeout": _LONGEST_BLOCK_S + _REPLY_TIMEOUT_S,
            "retry": Retry(NoBackoff(), 0),
        }
        try:
            # The URL may hold a password: it is in no error text.
            self._redis: Any = redis.Redis.from_url(url, **options)
        except (ValueError, TypeError, redis.RedisError):
            raise ConfigError("MRGC_QUEUE_URL is malformed") from None

    def listener(self, created_s: int, *, is_wanted: Callable[[bytes], bool]) -> Callable[[float], list[bytes]]:
        """Return how one wait rests.

        Args:
            created_s: unix second when the first of its jobs was created; notices of earlier ones are skipped.
            is_wanted: by job id, whether it is waited for.

        Returns:
            A function that rests for a number of seconds at most (0 only looks at what has come) and returns the ids of
            wanted jobs that have ended, so says the service; often none.
        """
        after = str(max(0, created_s - _SKEW_S) * 1_000)

        def listen(seconds: float) -> list[bytes]:
            nonlocal after
            end_s = self._monotonic() + seconds
            heard: list[bytes] = []
            while self._monotonic() >= self._deaf_until_s:
                left_s = 0.0 if heard else end_s - self._monotonic()
                page = self._read(after, left_s)
                heard += [job for _, job in page if is_wanted(job)]
                after = page[-1][0] if page else after
                if len(page) < _PAGE and (heard or left_s <= 0):
                    return heard
            self._rest(max(0.0, end_s - self._monotonic()))
            return heard

        return listen

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()

    def _read(self, after: str, seconds: float) -> list[tuple[str, bytes]]:
        """Read a page of entry and job ids, waiting so long for the first; none, and deafness, when that fails."""
        block_ms = int(min(seconds, _LONGEST_BLOCK_S) * 1_000)
        try:
            # To Redis, BLOCK 0 is for ever.
            found = self._redis.xread({self._stream: after}, count=_PAGE, block=block_ms if block_ms > 0 else None)
        except redis.RedisError:
            self._deaf_until_s = self._monotonic() + _DEAF_S
            return []
        return [(entry.decode(), _job_of(fields)) for _, entries in found for entry, fields in entries]


def _job_of(fields: dict[bytes, bytes]) -> bytes:
    try:
        return bytes.fromhex(fields.get(b"job", b"").decode("ascii"))
    except ValueError:
        return b""
