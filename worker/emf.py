"""CloudWatch metrics as log lines, in the embedded metric format: CloudWatch Logs makes metrics of lines it takes in.

Rules are those of the Amazon CloudWatch User Guide, "Specification: Embedded metric format". A line holds counts and
tenants' names only, which are public by design (docs/threat-model.md, statement 12). Nothing is called: whoever ships
the process's standard output to CloudWatch Logs ships the metrics.

May import: the standard library, worker.sources.base. Called by tasks.control.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Final, Literal, NamedTuple

from worker.sources.base import Backlog

#: Value of the dimension `Service` in every line, so that a dashboard finds them all.
SERVICE: Final = "mrgc"

BACKLOG_JOBS: Final = "BacklogJobs"
BACKLOG_PENDING: Final = "BacklogPending"
OLDEST_MESSAGE_AGE: Final = "OldestMessageAge"
DEAD_LETTERS: Final = "DeadLetters"
TENANTS_UNMEASURED: Final = "TenantsUnmeasured"
WORKER_READY: Final = "WorkerReady"
#: Every metric that this module writes.
METRICS: Final = (BACKLOG_JOBS, BACKLOG_PENDING, OLDEST_MESSAGE_AGE, DEAD_LETTERS, TENANTS_UNMEASURED, WORKER_READY)


class Metric(NamedTuple):
    """One value of a line."""

    name: str
    unit: Literal["Count", "Seconds"]
    value: float


def backlog_lines(measured: Mapping[str, Backlog], *, namespace: str, unmeasured: int, now_s: float) -> Iterator[str]:
    """Write the measurement of all queues: a line for each tenant, and one for all of them together.

    Args:
        measured: by tenant, or by `*` where all share a queue.
        namespace: in CloudWatch.
        unmeasured: tenants that were not measured this time.
        now_s: unix seconds.

    Yields:
        Lines with the dimensions Service and Tenant, then one with Service alone: the sums, and the greatest age.
    """
    for tenant, queue in measured.items():
        yield _line(_of(queue), {"Service": SERVICE, "Tenant": tenant}, namespace=namespace, now_s=now_s)
    queues = measured.values()
    ages_s = [queue.oldest_age_s for queue in queues if queue.oldest_age_s is not None]
    everything = Backlog(
        sum(queue.length for queue in queues),
        sum(queue.pending for queue in queues),
        # Where one tenant's age is not told, the greatest of the others is no answer.
        max(ages_s, default=0.0) if len(ages_s) == len(measured) else None,
        sum(queue.dead for queue in queues),
    )
    metrics = [*_of(everything), Metric(TENANTS_UNMEASURED, "Count", unmeasured)]
    yield _line(metrics, {"Service": SERVICE}, namespace=namespace, now_s=now_s)


def health_line(*, is_ready: bool, namespace: str, now_s: float) -> str:
    """Write whether one worker, whichever ran the task, would serve a job now: 1 or 0."""
    metrics = [Metric(WORKER_READY, "Count", int(is_ready))]
    return _line(metrics, {"Service": SERVICE}, namespace=namespace, now_s=now_s)


def _of(queue: Backlog) -> list[Metric]:
    age_s = queue.oldest_age_s
    return [
        Metric(BACKLOG_JOBS, "Count", queue.length),
        Metric(BACKLOG_PENDING, "Count", queue.pending),
        *([] if age_s is None else [Metric(OLDEST_MESSAGE_AGE, "Seconds", round(age_s, 3))]),
        Metric(DEAD_LETTERS, "Count", queue.dead),
    ]


def _line(metrics: list[Metric], dimensions: Mapping[str, str], *, namespace: str, now_s: float) -> str:
    directive = {
        "Namespace": namespace,
        "Dimensions": [list(dimensions)],
        "Metrics": [{"Name": metric.name, "Unit": metric.unit} for metric in metrics],
    }
    values = {metric.name: metric.value for metric in metrics}
    metadata = {"Timestamp": int(now_s * 1_000), "CloudWatchMetrics": [directive]}
    return json.dumps({"_aws": metadata, **dimensions, **values}, separators=(",", ":"))
