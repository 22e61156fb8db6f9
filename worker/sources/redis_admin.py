"""What operators and trusted producers do to the Redis queues: send, measure, redrive, purge.

May import: the standard library, mrgc.errors, worker.sources. Called by the tasks and the metrics.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from mrgc.errors import TooLargeError
from worker.sources.base import Backlog
from worker.sources.messages import MAX_MESSAGE_BYTES, end_of_life_s
from worker.sources.redis_layout import (
    GROUP,
    dead_stream,
    parse_fields,
    queue_stream,
    sent_s,
)
from worker.sources.redis_streams import Client, mapped_errors

#: Dead letters that one step of a scan holds in memory: 64 × 512 KiB.
PAGE: Final = 64


class RedisAdmin:
    """The QueueAdmin over Redis Streams.

    Args:
        client: from `redis_streams.connect`.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def send(self, tenant: str, job: bytes) -> str:
        """Append a sealed job to `q:TENANT`."""
        if len(job) > MAX_MESSAGE_BYTES:
            raise TooLargeError("job is over 524,288 bytes: send a claim check")
        with mapped_errors():
            message_id: bytes = self._client.xadd(queue_stream(tenant), {"job": job})
        return message_id.decode()

    def backlog(self, tenants: Sequence[str]) -> dict[str, Backlog]:
        """Measure every tenant's stream, group and dead letters in one round trip."""
        with mapped_errors(), self._client.pipeline(transaction=False) as pipe:
            for tenant in tenants:
                pipe.xlen(queue_stream(tenant))
                pipe.xrange(queue_stream(tenant), count=1)
                pipe.xpending(queue_stream(tenant), GROUP)
                pipe.xlen(dead_stream(tenant))
            replies = iter(pipe.execute(raise_on_error=False))
        measured = {}
        for tenant, length, oldest, pending, dead in zip(tenants, replies, replies, replies, replies, strict=True):
            # A tenant that never sent has neither stream nor group; the server answers NOGROUP.
            leased = pending["pending"] if isinstance(pending, Mapping) else 0
            age_s = max(0.0, time.time() - sent_s(oldest[0][0])) if oldest else 0.0
            measured[tenant] = Backlog(length, leased, age_s, dead)
        return measured

    def redrive(self, tenant: str, *, reason: str | None, limit: int) -> int:
        """Move letters back, each in a transaction: a crash moves one twice at worst, and a job stores one result."""
        moved = 0
        for letter_id, letter in self._letters(tenant):
            if moved == limit:
                break
            body = {name: letter[name] for name in (b"job", b"ref") if name in letter}
            if not body or (reason is not None and letter.get(b"reason") != reason.encode()):
                continue
            with mapped_errors(), self._client.pipeline(transaction=True) as pipe:
                pipe.xadd(queue_stream(tenant), body)
                pipe.xdel(dead_stream(tenant), letter_id)
                pipe.execute()
            moved += 1
        return moved

    def purge_expired(self, tenant: str, *, now_s: float) -> int:
        """Delete letters whose job's `expires` has passed; without a readable header, those past every lifetime."""
        expired = [
            letter_id for letter_id, letter in self._letters(tenant) if now_s >= _end_of_life_s(letter_id, letter)
        ]
        with mapped_errors():
            for start in range(0, len(expired), PAGE):
                self._client.xdel(dead_stream(tenant), *expired[start : start + PAGE])
        return len(expired)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _letters(self, tenant: str) -> Iterator[tuple[bytes, Mapping[bytes, bytes]]]:
        after = b"-"
        while True:
            with mapped_errors():
                page = self._client.xrange(dead_stream(tenant), after, "+", count=PAGE)
            yield from page
            if len(page) < PAGE:
                return
            after = b"(" + page[-1][0]


def _end_of_life_s(letter_id: bytes, letter: Mapping[bytes, bytes]) -> float:
    fields = {name: letter[name] for name in (b"job", b"ref") if name in letter}
    return end_of_life_s(parse_fields(fields), sent_s=sent_s(letter_id))
