"""kombu's Redis transport, which does not die of what it reads (tasks.envelope).

kombu's name for these schemes (tasks/__init__.py). May import: kombu, structlog, tasks. Called by kombu.
"""

from __future__ import annotations

import uuid
from typing import Any

import structlog
from kombu.transport import redis

from tasks.envelope import LOAD_ERRORS, delivered

_log = structlog.get_logger()


class Channel(redis.Channel):
    """A channel whose queues may hold anything."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except self.connection_errors:
            raise
        except LOAD_ERRORS as error:
            # BRPOP has taken it off the list: nothing more can be done with it, and the next read is as good as any.
            _log.warning("control message refused", code="bad_format", exc_info=error)
            return True


class Transport(redis.Transport):
    """The transport of MRGC_BROKER_URL with the scheme of a Redis."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        super()._deliver(delivered(message, queue=queue, tag=str(uuid.uuid4())), queue)
