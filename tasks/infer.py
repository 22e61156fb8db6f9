"""Task `tasks.infer`: a door for in-house producers that already speak Celery.

An edge worker serves it, `python -m celery -A tasks worker -Q infer`. It takes sealed jobs only, looks at their public
bytes, and forwards them to the tenant's queue; like the intake it never holds a plaintext or a key.

May import: celery, worker, mrgc.
"""

from __future__ import annotations

import base64
import binascii
import os
from functools import cache
from typing import Final, NamedTuple

from celery import shared_task

from mrgc.errors import FormatError, MrgcError, NotAdmitted, QueueUnavailable, TooLargeError
from mrgc.wire import sealed
from worker.registry import Registry
from worker.settings import EdgeSettings
from worker.sources.base import QueueAdmin
from worker.sources.brokers import open_admin
from worker.sources.messages import MAX_MESSAGE_BYTES

#: Base64 of the longest job that a message may hold.
MAX_TEXT_CHARS: Final = -(-MAX_MESSAGE_BYTES // 3) * 4


@shared_task(
    name="tasks.infer", throws=(MrgcError,), autoretry_for=(QueueUnavailable,), retry_backoff=1, max_retries=None
)
def infer(job: str) -> str:
    """Forward one sealed job to its tenant's queue.

    Args:
        job: base64 of the sealed job (docs/spec.md §1), at most 524,288 bytes of it.

    Returns:
        The queue's name for the message.

    Raises:
        FormatError: not base64, or not a sealed job.
        TooLargeError: over the cap.
        NotAdmitted: the registry does not know the tenant, or not with this key.
        QueueUnavailable: the queue does not answer; Celery tries again with backoff and jitter.
    """
    edge = _edge()
    body = _decode(job)
    header = sealed.parse_job(body, max_body_bytes=edge.settings.max_body_bytes).header
    edge.registry.refresh()
    entry = edge.registry.get(header.tenant)
    if entry is None or header.key_arn not in entry.key_arns:
        raise NotAdmitted("tenant or key has no registry entry")
    return edge.admin.send(header.tenant, body)


class _Edge(NamedTuple):
    settings: EdgeSettings
    registry: Registry
    admin: QueueAdmin


@cache
def _edge() -> _Edge:
    # Made by the first task, so that importing this module touches neither environment nor network.
    settings = EdgeSettings.from_env(os.environ)
    return _Edge(settings, Registry(settings.registry), open_admin(settings.queue_url))


def _decode(job: object) -> bytes:
    if type(job) is not str:
        raise FormatError("job is not text")
    if len(job) > MAX_TEXT_CHARS:
        raise TooLargeError("job is over 524,288 bytes: send a claim check")
    try:
        body = base64.b64decode(job, validate=True)
    except (binascii.Error, ValueError) as err:
        raise FormatError("job is not base64") from err
    # docs/spec.md §0: unused bits are zero, so there is one text for every job.
    if base64.b64encode(body).decode() != job:
        raise FormatError("job is not canonical base64")
    return body
