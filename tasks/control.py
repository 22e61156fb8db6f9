"""Control tasks: what operators do to the queues, and what they ask of a worker.

`python -m celery -A tasks call tasks.control.redrive --args '["acme"]'` runs one somewhere; `python -m celery -A tasks
inspect mrgc_health` asks every worker. Tasks return counts for whoever calls them directly; as tasks their results are
not kept, and the log line tells.

May import: celery, structlog, worker, mrgc, tasks.intake_step.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Final

import structlog
from celery import shared_task
from celery.worker.control import inspect_command

from mrgc.errors import NotAdmitted
from tasks.intake_step import IntakeStep
from worker.registry import Registry
from worker.settings import EdgeSettings
from worker.sources.base import QueueAdmin
from worker.sources.brokers import open_admin

#: Letters that one redrive moves at most, unless it is told otherwise.
REDRIVE_LIMIT: Final = 1_000

_log = structlog.get_logger()


@shared_task
def redrive(tenant: str, reason: str | None = None, limit: int = REDRIVE_LIMIT) -> int:
    """Put dead letters of a tenant back into its queue.

    Args:
        tenant: of the registry.
        reason: only letters with this code; None moves all that hold a job.
        limit: at most this many, oldest first.

    Returns:
        How many were moved.

    Raises:
        NotAdmitted: the registry has no such tenant.
        QueueUnavailable: the broker does not answer; repeat it.
    """
    with _queues() as (admin, registry):
        _ensure_registered(tenant, registry)
        moved = admin.redrive(tenant, reason=reason, limit=limit)
    _log.info("dead letters redriven", tenant=tenant, count=moved, code=reason)
    return moved


@shared_task
def purge_expired(tenant: str) -> int:
    """Delete the dead letters of a tenant whose jobs have expired.

    Returns:
        How many were deleted.

    Raises:
        NotAdmitted: the registry has no such tenant.
        QueueUnavailable: the broker does not answer; repeat it.
    """
    with _queues() as (admin, registry):
        _ensure_registered(tenant, registry)
        deleted = admin.purge_expired(tenant, now_s=time.time())
    _log.info("expired dead letters purged", tenant=tenant, count=deleted)
    return deleted


@shared_task
def backlog() -> dict[str, dict[str, float]]:
    """Measure the queues of all tenants, for the log and for /metrics of the worker that runs it.

    Returns:
        By tenant: length, pending, oldest_age_s, dead.

    Raises:
        QueueUnavailable: the broker does not answer.
    """
    with _queues() as (admin, registry):
        measured = admin.backlog(sorted(registry.tenants))
    for tenant, queue in measured.items():
        _log.info("backlog", tenant=tenant, jobs=queue.length, pending=queue.pending, count=queue.dead)
        if IntakeStep.running is not None:
            IntakeStep.running.metrics.set_backlog(tenant, queue)
    return {tenant: asdict(queue) for tenant, queue in measured.items()}


@shared_task
def health() -> list[str]:
    """Log why the worker that runs this does not serve.

    Returns:
        Codes; none when it serves.
    """
    reasons = IntakeStep.running.readiness() if IntakeStep.running is not None else ["no_intake"]
    _log.info("health", ready=not reasons, reasons=reasons)
    return reasons


#: What a worker of a GPU host serves from Celery's queue.
TASKS: Final = (redrive, purge_expired, backlog, health)


@inspect_command(name="mrgc_health")
def inspect_health(_state: Any) -> dict[str, Any]:
    """Answer `celery inspect mrgc_health`."""
    reasons = health()
    return {"ready": not reasons, "reasons": reasons}


@inspect_command(name="mrgc_backlog")
def inspect_backlog(_state: Any) -> dict[str, Any]:
    """Answer `celery inspect mrgc_backlog`."""
    return dict(backlog())


@contextmanager
def _queues() -> Iterator[tuple[QueueAdmin, Registry]]:
    settings = EdgeSettings.from_env(os.environ)
    admin = open_admin(settings.queue_url)
    try:
        yield admin, Registry(settings.registry)
    finally:
        admin.close()


def _ensure_registered(tenant: str, registry: Registry) -> None:
    if registry.get(tenant) is None:
        raise NotAdmitted("tenant has no registry entry")
