"""The queues of the two peers: lists on the Redis server, filled by kombu itself.

May be imported without Celery's settings; the peers' worker processes and the benchmark share its names.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Final

from celery import Celery
from kombu import Connection, Queue

TASK_QUEUE: Final = "bench-task"
TASK_NAME: Final = "bench.serve"
STEP_QUEUE: Final = "bench-step"
#: As in celeryconfig.py: every key of kombu begins with it.
PREFIX: Final = "ctl:"


class KombuQueue:
    """One queue of a peer, and copies of its content from which it is filled at once.

    Args:
        url: Redis database of the peers' broker.
        client: of the same database.
        name: TASK_QUEUE or STEP_QUEUE.
    """

    def __init__(self, url: str, client: Any, name: str) -> None:
        self._url = url
        self._client = client
        self._name = name

    def prepare(self, label: str, jobs: Sequence[bytes]) -> None:
        """Send jobs to a queue that nobody consumes."""
        if self._name == TASK_QUEUE:
            self._send_tasks(f"{self._name}-{label}", jobs)
        else:
            self._send_messages(f"{self._name}-{label}", jobs)

    def fill(self, label: str) -> None:
        """Copy prepared jobs to where the worker takes them from."""
        assert self._client.copy(f"{PREFIX}{self._name}-{label}", PREFIX + self._name, replace=True)

    def is_drained(self) -> bool:
        """Return whether nothing waits and nothing is unacknowledged."""
        with self._client.pipeline(transaction=True) as pipe:
            waiting, unacknowledged = pipe.llen(PREFIX + self._name).hlen(f"{PREFIX}unacked").execute()
        return not waiting and not unacknowledged

    def calls(self) -> int:
        """Return 0: nobody counts them."""
        return 0

    def _send_tasks(self, queue: str, jobs: Sequence[bytes]) -> None:
        app = Celery(broker=self._url)
        app.conf.update(broker_transport_options={"global_keyprefix": PREFIX}, task_ignore_result=True)
        with app.connection_for_write() as connection, connection.Producer() as producer:
            for job in jobs:
                app.send_task(TASK_NAME, (base64.b64encode(job).decode(),), queue=queue, producer=producer)
        app.close()

    def _send_messages(self, queue: str, jobs: Sequence[bytes]) -> None:
        options = {"global_keyprefix": PREFIX}
        with Connection(self._url, transport_options=options) as connection, connection.Producer() as producer:
            for job in jobs:
                producer.publish(
                    job,
                    routing_key=queue,
                    declare=[Queue(queue)],
                    content_type="application/octet-stream",
                    content_encoding="binary",
                )
