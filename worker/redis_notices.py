"""Notices as entries of the Redis stream `done:TENANT`, on the server of the queues.

Capped and expiring, so that tenants who never read cost little: about 300 bytes an entry.

May import: the standard library, mrgc.errors, worker. Called by worker.composition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from worker.notices import Notice
from worker.sources.redis_layout import done_stream
from worker.sources.redis_streams import Client, mapped_errors

#: Entries that a stream keeps, about: a tenant that reads learns of as many jobs between two reads.
KEPT: Final = 1_000
#: A stream that nothing is added to is gone after this.
KEPT_S: Final = 86_400


class RedisNotices:
    """The Notifier over Redis.

    Args:
        client: from `redis_streams.connect`.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def publish(self, notices: Sequence[Notice]) -> int:
        """Add all in one round trip. A server out of memory refuses them, and is still told of acknowledgements."""
        with mapped_errors(), self._client.pipeline(transaction=False) as pipe:
            for notice in notices:
                fields: dict[Any, Any] = notice._asdict()
                stream = done_stream(fields.pop("tenant"))
                pipe.xadd(stream, fields, maxlen=KEPT, approximate=True)
            for tenant in {notice.tenant for notice in notices}:
                pipe.expire(done_stream(tenant), KEPT_S)
            added = pipe.execute(raise_on_error=False)[: len(notices)]
        return sum(isinstance(reply, Exception) for reply in added)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
