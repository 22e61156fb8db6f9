"""The broker that an MRGC_QUEUE_URL names: Redis or SQS.

May import: mrgc.wire, worker.sources. Called by worker.composition and the tasks.
"""

from __future__ import annotations

from mrgc.wire.queue_urls import is_sqs, parse_sqs
from worker.sources import redis_streams, sqs_calls
from worker.sources.base import JobSource, QueueAdmin
from worker.sources.redis_admin import RedisAdmin
from worker.sources.redis_streams import RedisStreams
from worker.sources.sqs import RECEIVERS, SqsSource
from worker.sources.sqs_admin import SqsAdmin


def open_source(url: str, *, consumer: str, lease_s: float) -> JobSource:
    """Make the source of jobs; nothing is sent before it is used.

    Args:
        url: MRGC_QUEUE_URL.
        consumer: name of this process, unique per boot.
        lease_s: how long a message stays ours without a heartbeat.

    Raises:
        ConfigError: the URL is malformed, or its client cannot be set up.
    """
    if is_sqs(url):
        queues = parse_sqs(url)
        return SqsSource(sqs_calls.connect(queues, receivers=RECEIVERS), queues, lease_s=lease_s)
    return RedisStreams(redis_streams.connect(url), consumer=consumer, lease_s=lease_s)


def open_admin(url: str) -> QueueAdmin:
    """Make what operators and trusted producers use; nothing is sent before it is used.

    Raises:
        ConfigError: the URL is malformed, or its client cannot be set up.
    """
    if is_sqs(url):
        queues = parse_sqs(url)
        return SqsAdmin(sqs_calls.connect(queues), queues)
    return RedisAdmin(redis_streams.connect(url))
