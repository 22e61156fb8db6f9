"""kombu's SQS transport, which dies neither of what it reads (tasks.envelope) nor of an SQS that refuses a poll.

kombu takes an answer other than 200 for a list, where its next step expects a table, or raises a plain Exception out of
the event loop: either ends the worker, and its intake with it, because SQS was unwell for a moment. Here it is a poll
that found nothing; the next follows after polling_interval.

kombu's name for this scheme (tasks/__init__.py). May import: kombu, structlog, tasks. Called by kombu.
"""

from __future__ import annotations

from typing import Any

import structlog
from kombu.asynchronous.aws.sqs.connection import AsyncSQSConnection
from kombu.transport import SQS
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

from tasks.envelope import LOAD_ERRORS, delivered

_log = structlog.get_logger()


class Connection(AsyncSQSConnection):
    """The polls of one queue."""

    def _on_list_ready(self, parent: Any, markers: Any, operation: str, response: Any) -> Any:
        if response.status != self.STATUS_CODE_OK:
            _log.warning("control queue gives no answer", status=int(response.status))
            return {}
        return super()._on_list_ready(parent, markers, operation, response)


class Channel(SQS.Channel):
    """A channel whose queues may hold anything."""

    def asynsqs(self, queue: str | None = None) -> Any:
        """Return the client that polls a queue, one for each as in kombu; all queues are predefined."""
        clients = self._predefined_queue_async_clients
        if queue not in clients:
            clients[queue] = Connection(sqs_connection=self.sqs(queue=queue), region=self.region)
        return clients[queue]

    def _message_to_python(self, message: dict[str, Any], queue_name: str, q_url: str) -> dict[str, Any]:
        try:
            found = loads(bytes_to_str(self._decode_python_message_body(message["Body"])))
        except LOAD_ERRORS:
            found = None
        # kombu deletes by these two.
        return delivered(found, queue=queue_name, tag=message["ReceiptHandle"], sqs_message=message, sqs_queue=q_url)


class Transport(SQS.Transport):
    """The transport of an MRGC_BROKER_URL that is an SQS queue URL."""

    Channel = Channel
