"""Counters and gauges of the intake, in a registry of their own.

Labels are tenants of the registry, codes of mrgc.errors and engine addresses: all bounded, none of them chosen by a
sender.

May import: the standard library, prometheus_client, worker.sources.base. Called by the intake and the tasks.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from worker.sources.base import Backlog

CONTENT_TYPE = CONTENT_TYPE_LATEST

#: How long a measurement of a queue is shown: more than one minute's round, less than two. Each round runs on one of
#: many workers (docs/adr/0017-who-shows-the-backlog.md), so an older figure may have a younger one elsewhere.
BACKLOG_SHOWN_S: Final = 90.0

_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024)
_SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3_600)


class Metrics:
    """Everything that /metrics shows of this process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"mrgc_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"mrgc_{name}", text, labels, registry=registry)

        self.received = counter("jobs_received", "messages leased, recovered ones included", "tenant")
        self.served = counter("jobs_served", "sealed results that came from an engine", "tenant", "status")
        self.dead_letters = counter("dead_letters", "messages moved to the dead letters", "tenant", "code")
        self.notices = counter("notices", "notices of ended jobs to tenants: sent, or lost", "outcome")
        self.retries = counter("retries", "outcomes that asked for another try", "code")
        self.engine_deaths = counter("engine_deaths", "engines that died with jobs in them")
        self.threads_replaced = counter("threads_replaced", "dead threads that were replaced", "thread")
        self.batch_jobs = Histogram("mrgc_batch_jobs", "jobs of one batch", buckets=_BATCH_BUCKETS, registry=registry)
        self.held_seconds = Histogram(
            "mrgc_held_seconds", "from receive to ack or dead letter", buckets=_SECONDS_BUCKETS, registry=registry
        )
        self.queue_seconds = Histogram(
            "mrgc_queue_seconds", "from send to receive", buckets=_SECONDS_BUCKETS, registry=registry
        )
        self.held_jobs = gauge("held_jobs", "leases held")
        self.held_bytes = gauge("held_bytes", "bytes of held messages")
        self.unstored_bytes = gauge("unstored_bytes", "bytes of results that wait for the store")
        self.ready = gauge("ready", "1 when jobs are received and served")
        self.engine = gauge("engine", "an engine's own counters since its start", "engine", "name")
        self.backlog_jobs = gauge("backlog_jobs", "messages in a queue, leased ones included", "tenant")
        self.backlog_pending = gauge("backlog_pending", "leased messages of a queue", "tenant")
        self.backlog_age_seconds = gauge("backlog_age_seconds", "age of the oldest message of a queue", "tenant")
        self.dead_letter_jobs = gauge("dead_letter_jobs", "messages among a tenant's dead letters", "tenant")
        self.backlog_measured = gauge(
            "backlog_measured_timestamp_seconds", "when this worker measured a queue, unix time", "tenant"
        )
        self._of_backlog = (
            *(self.backlog_jobs, self.backlog_pending, self.backlog_age_seconds),
            *(self.dead_letter_jobs, self.backlog_measured),
        )
        #: When each tenant's queue was measured here, monotonic; held by the lock, because tasks have threads.
        self._measured_s: dict[str, float] = {}
        self._lock = threading.Lock()

    def set_backlog(self, tenant: str, queue: Backlog) -> None:
        """Show one measurement of a tenant's queue, for BACKLOG_SHOWN_S."""
        with self._lock:
            self._measured_s[tenant] = time.monotonic()
            self.backlog_jobs.labels(tenant).set(queue.length)
            self.backlog_pending.labels(tenant).set(queue.pending)
            if queue.oldest_age_s is not None:
                self.backlog_age_seconds.labels(tenant).set(queue.oldest_age_s)
            else:
                self.backlog_age_seconds.remove(tenant)
            self.dead_letter_jobs.labels(tenant).set(queue.dead)
            self.backlog_measured.labels(tenant).set_to_current_time()

    def render(self) -> bytes:
        """Return all of it in the text format of Prometheus, without measurements that have grown old."""
        self._forget_old_backlog()
        return generate_latest(self.registry)

    def _forget_old_backlog(self) -> None:
        with self._lock:
            oldest_s = time.monotonic() - BACKLOG_SHOWN_S
            for tenant in [name for name, measured_s in self._measured_s.items() if measured_s < oldest_s]:
                del self._measured_s[tenant]
                for gauge in self._of_backlog:
                    gauge.remove(tenant)
