"""The consumer of Celery's own queues, which looks at every message before Celery does.

Named by `worker_consumer` in celeryconfig.py. The rule is in tasks.plain_call.

May import: celery, kombu, structlog, mrgc.errors, tasks. Called by Celery.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from celery.utils.log import get_logger
from celery.worker.consumer import Consumer
from kombu import Message
from kombu.exceptions import DecodeError

from mrgc.errors import FormatError, MrgcError
from tasks import control, infer
from tasks.intake_step import is_edge
from tasks.plain_call import ensure_plain_call

_log = structlog.get_logger()


class PlainConsumer(Consumer):
    """Hands on plain calls of the tasks that this worker serves; drops every other message with a line in the log."""

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], Any]:
        """Return what is called with each message of the queues."""
        handle = super().create_task_handler(*args, **kwargs)
        tasks = {task.name for task in ((infer.infer,) if is_edge(self.app) else control.TASKS)}

        def handle_plain(message: Message) -> None:
            try:
                ensure_plain_call(message.headers, _body(message), tasks=tasks)
            except MrgcError as error:
                _log.warning("control message refused", code=error.code, reason=str(error))
                message.reject_log_error(get_logger(__name__), self.connection_errors)
            else:
                handle(message)

        return handle_plain


def _body(message: Message) -> object:
    # kombu would decode with whatever codec the message names; of these two it raises DecodeError and nothing else.
    if (message.content_type, message.content_encoding) != ("application/json", "utf-8"):
        raise FormatError("body is not json")
    try:
        return message.decode()
    except DecodeError as error:
        raise FormatError("body is not json") from error
