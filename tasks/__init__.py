"""The Celery edge: `python -m celery -A tasks worker` hosts the intake and runs control tasks.

Celery gives the process its life: command line, signals, pools, remote control. The tenants' jobs go past it
(worker.intake). `python -m celery`, not `celery`: the latter takes the checkout off sys.path, and then a module that is
imported late is not found.

May import: celery, kombu, worker, mrgc. Never torch, the enclave or worker.engine.
"""

from __future__ import annotations

from typing import Any

from celery import Celery, signals
from kombu.transport import TRANSPORT_ALIASES

from tasks import control, infer
from tasks.intake_step import IntakeStep
from worker import logs

# By scheme and not by `broker_transport`, with which kombu forgets the TLS that rediss:// asks for.
TRANSPORT_ALIASES.update(
    redis="tasks.redis_transport:Transport",
    rediss="tasks.redis_transport:Transport",
    sqs="tasks.sqs_transport:Transport",
)

# Imported here and not only by the worker: the command line knows no inspect command that it has not imported.
app = Celery("mrgc", include=[control.__name__, infer.__name__])
app.config_from_object("celeryconfig")
app.steps["worker"].add(IntakeStep)


@signals.setup_logging.connect(weak=False)
def _configure_logs(**_kwargs: Any) -> None:
    """Take logging over: with a receiver on this signal Celery installs no handler of its own."""
    logs.configure("worker")


@signals.beat_init.connect(weak=False)
def _name_beat(**_kwargs: Any) -> None:
    """Give beat's lines their own name: the signal above does not say which command it is sent by."""
    logs.configure("beat")
