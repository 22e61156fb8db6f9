"""The best arrangement of kombu that we know: `python -m celery -A bench.queues.consumer_step worker`.

A consumer step of the Celery worker takes messages without a task around them, a thread serves them in batches as the
intake's batcher would (up to 64, at most 5 ms of waiting, none while it is busy), and a batch is acknowledged in one
pipeline instead of one transaction per message.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from celery import Celery, bootsteps
from kombu import Consumer, Queue
from kombu.message import Message

from bench.queues.kombu_queues import STEP_QUEUE
from bench.queues.serving import Serving

BATCH_JOBS: Final = 64
WAIT_S: Final = 0.005
PREFETCH: Final = 512


class BatchStep(bootsteps.ConsumerStep):
    """Consumes, serves in batches, acknowledges in pipelines."""

    def get_consumers(self, channel: Any) -> list[Consumer]:
        """Start the batching thread of this connection and return its consumer."""
        waiting: queue.SimpleQueue[Message] = queue.SimpleQueue()
        threading.Thread(target=_serve_all, args=(channel, waiting), daemon=True).start()
        consumer = Consumer(channel, queues=[Queue(STEP_QUEUE)], on_message=waiting.put)
        consumer.qos(prefetch_count=PREFETCH)
        return [consumer]


def _serve_all(channel: Any, waiting: queue.SimpleQueue[Message]) -> None:
    serving = Serving()
    while True:
        batch = _take(waiting)
        serving.serve([message.body for message in batch])
        _acknowledge(channel, batch)


def _take(waiting: queue.SimpleQueue[Message]) -> list[Message]:
    batch = [waiting.get()]
    deadline_s = time.monotonic() + WAIT_S
    while len(batch) < BATCH_JOBS:
        try:
            batch.append(waiting.get(timeout=max(0.0, deadline_s - time.monotonic())))
        except queue.Empty:
            break
    return batch


def _acknowledge(channel: Any, batch: Sequence[Message]) -> None:
    """Do what `kombu.transport.redis.QoS.ack` does for each message, in one transaction for all."""
    qos = channel.qos
    tags = [message.delivery_tag for message in batch]
    with qos.pipe_or_acquire() as pipe:
        pipe.zrem(qos.unacked_index_key, *tags).hdel(qos.unacked_key, *tags).execute()
    for tag in tags:
        super(type(qos), qos).ack(tag)


app = Celery("bench-step")
app.config_from_object("celeryconfig")
app.conf.update(
    task_queues=[Queue("bench-step-control")],
    task_default_queue="bench-step-control",
    task_routes=None,
    worker_consumer="celery.worker.consumer:Consumer",
)
app.steps["consumer"].add(BatchStep)
