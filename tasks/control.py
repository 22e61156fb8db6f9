"""Control tasks: what operators do to the queues, and what they ask of a worker.

`python -m celery -A tasks call tasks.control.redrive --args '["acme"]'` runs one somewhere; `python -m celery -A tasks
inspect mrgc_health` asks every worker; `python -m celery -A tasks beat` calls backlog, purge_all and health by the
clock (celeryconfig.py). Tasks return counts for whoever calls them directly; as tasks their results are not kept, and
the log line tells. Nothing is redriven by the clock: a letter is dead for a reason that somebody has to remove first.

What visits every tenant has a bound in time, shorter than the broker's for a task; what is left out begins the next
round (worker.rounds).

May import: celery, structlog, worker, mrgc, tasks.intake_step.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Final, NamedTuple

import structlog
from celery import shared_task
from celery.worker.control import inspect_command

from mrgc.errors import NotAdmitted, QueueUnavailable
from tasks.intake_step import IntakeStep
from worker import emf
from worker.registry import Registry
from worker.rounds import Round, from_another
from worker.settings import EdgeSettings
from worker.sources.base import Backlog, QueueAdmin
from worker.sources.brokers import open_admin

#: Letters that one redrive moves at most, unless it is told otherwise.
REDRIVE_LIMIT: Final = 1_000
#: Tenants that one request to the broker measures: at Redis one round trip, at SQS 200 calls, eight side by side.
MEASURE_PAGE: Final = 100
#: Longest measurement, of the minute until the next one. Redis measures 1,000 tenants in a fraction of a second.
MEASURE_S: Final = 40.0
#: Longest purge; a control task that has not ended after 900 s is run again by somebody else (celeryconfig.py).
PURGE_S: Final = 600.0

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
def purge_all() -> int:
    """Delete the dead letters of all tenants whose jobs have expired; a tenant that cannot be purged is passed over.

    Returns:
        How many were deleted.

    Raises:
        QueueUnavailable: the broker does not answer.
    """
    deleted = 0
    with _queues() as (admin, registry):
        found = _measure(admin, registry).measured
        dirty = sorted(tenant for tenant, queue in found.items() if queue.dead)
        visit = Round(from_another(dirty, turn=_turn(3_600), page=1), page=1, within_s=PURGE_S)
        for (tenant,) in visit.pages():
            try:
                deleted += admin.purge_expired(tenant, now_s=time.time())
            except QueueUnavailable as error:
                _log.warning("dead letters not purged", tenant=tenant, exc_info=error)
    _log.info("expired dead letters purged", tenants=len(dirty) - visit.left, count=deleted, left=visit.left)
    return deleted


@shared_task
def backlog() -> dict[str, dict[str, float]]:
    """Measure the queues of all tenants, for the log, for CloudWatch, and for /metrics of the worker that runs it.

    Returns:
        By tenant: length, pending, oldest_age_s, dead.

    Raises:
        QueueUnavailable: the broker does not answer.
    """
    found = _show_backlog()
    namespace = EdgeSettings.from_env(os.environ).emf_namespace
    if namespace:
        now_s = time.time()
        _write(emf.backlog_lines(found.measured, namespace=namespace, unmeasured=found.left, now_s=now_s))
    return _as_answer(found)


@shared_task
def health() -> list[str]:
    """Log why the worker that runs this does not serve.

    Run by the clock it is the control plane's own sign of life: no line means no beat, no broker or no worker.

    Returns:
        Codes; none when it serves.
    """
    reasons = _readiness()
    namespace = EdgeSettings.from_env(os.environ).emf_namespace
    if namespace:
        _write([emf.health_line(is_ready=not reasons, namespace=namespace, now_s=time.time())])
    return reasons


#: What a worker of a GPU host serves from Celery's queue.
TASKS: Final = (redrive, purge_expired, purge_all, backlog, health)


@inspect_command(name="mrgc_health")
def inspect_health(_state: Any) -> dict[str, Any]:
    """Answer `celery inspect mrgc_health`."""
    reasons = _readiness()
    return {"ready": not reasons, "reasons": reasons}


@inspect_command(name="mrgc_backlog")
def inspect_backlog(_state: Any) -> dict[str, Any]:
    """Answer `celery inspect mrgc_backlog`."""
    return dict(_as_answer(_show_backlog()))


class _Measurement(NamedTuple):
    measured: dict[str, Backlog]
    #: Tenants for which there was no time.
    left: int


def _show_backlog() -> _Measurement:
    with _queues() as (admin, registry):
        found = _measure(admin, registry)
    queues = found.measured.values()
    _log.info(
        "backlog",
        tenants=len(found.measured),
        jobs=sum(queue.length for queue in queues),
        pending=sum(queue.pending for queue in queues),
        count=sum(queue.dead for queue in queues),
        left=found.left,
    )
    if IntakeStep.running is not None:
        for tenant, queue in found.measured.items():
            IntakeStep.running.metrics.set_backlog(tenant, queue)
    return found


def _measure(admin: QueueAdmin, registry: Registry) -> _Measurement:
    tenants = from_another(sorted(registry.tenants), turn=_turn(60), page=MEASURE_PAGE)
    visit = Round(tenants, page=MEASURE_PAGE, within_s=MEASURE_S)
    measured: dict[str, Backlog] = {}
    for page in visit.pages():
        measured |= admin.backlog(page)
    return _Measurement(measured, visit.left)


def _readiness() -> list[str]:
    reasons = IntakeStep.running.readiness() if IntakeStep.running is not None else ["no_intake"]
    _log.info("health", ready=not reasons, reasons=reasons)
    return reasons


def _as_answer(found: _Measurement) -> dict[str, dict[str, float]]:
    return {tenant: asdict(queue) for tenant, queue in found.measured.items()}


def _turn(interval_s: int) -> int:
    # Of the clock, because the next round is likely to run in another process.
    return int(time.time() / interval_s)


def _write(lines: Iterable[str]) -> None:
    # Standard output, because standard error belongs to the log. One write: tasks have threads, and a line that is
    # torn is no metric.
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


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
