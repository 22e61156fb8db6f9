"""Plain Celery: one task per job, acknowledged late: `python -m celery -A bench.queues.task_per_job worker`.

Its settings are those of celeryconfig.py, except for what would slow a consumer of many small tasks down.
"""

from __future__ import annotations

import base64
import threading

from celery import Celery
from kombu import Queue

from bench.queues.kombu_queues import TASK_NAME, TASK_QUEUE
from bench.queues.serving import Serving

app = Celery("bench-task")
app.config_from_object("celeryconfig")
app.conf.update(
    task_queues=[Queue(TASK_QUEUE)],
    task_default_queue=TASK_QUEUE,
    task_routes=None,
    worker_consumer="celery.worker.consumer:Consumer",
    worker_disable_prefetch=False,
    worker_prefetch_multiplier=16,
)

_of_thread = threading.local()


@app.task(name=TASK_NAME)
def serve(job: str) -> None:
    """Serve one sealed job, base64."""
    if not hasattr(_of_thread, "serving"):
        _of_thread.serving = Serving()
    _of_thread.serving.serve([base64.b64decode(job)])
