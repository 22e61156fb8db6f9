"""The bootstep that gives the intake the life of a Celery worker.

It starts after the pool, stops receiving at the first SIGTERM, drains in the warm shutdown, and hands everything back
in a cold one. An edge worker, `-Q infer`, has no intake.

May import: celery, structlog, worker, mrgc. Called by tasks and tasks.control.
"""

from __future__ import annotations

import os
import time
from typing import Any, ClassVar, Final

import structlog
from celery import Celery, bootsteps, signals

from mrgc.errors import ConfigError
from worker.composition import build_intake, serve_http
from worker.health import HttpServer
from worker.intake import Intake
from worker.settings import WorkerSettings

#: The queue of an edge worker; the worker of a GPU host never consumes it.
EDGE_QUEUE: Final = "infer"

_log = structlog.get_logger()


class IntakeStep(bootsteps.StartStopStep):
    """Starts, drains and stops `worker.intake`."""

    requires: ClassVar[set[str]] = {"celery.worker.components:Pool"}
    #: The intake of this process while it runs, for control tasks that are about this process.
    running: ClassVar[Intake | None] = None

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._settings: WorkerSettings | None = None
        self._http: HttpServer | None = None

    def include_if(self, parent: Any) -> bool:
        """Tell a GPU host's worker from an edge worker by the queues that it was started with."""
        if is_edge(parent.app):
            return False
        parent.app.amqp.queues.deselect([EDGE_QUEUE])
        return True

    def start(self, _parent: Any) -> None:
        """Start the intake's threads; must not block, because SIGTERM would wait for it.

        Raises:
            ConfigError: a setting is wrong; Celery ends the worker.
        """
        try:
            self._settings = settings = WorkerSettings.from_env(os.environ)
            intake = build_intake(settings)
        except ConfigError as err:
            _log.error("configuration is wrong", reason=str(err), exc_info=err)
            raise
        if settings.http is not None:
            self._http = serve_http(intake, settings.http)
        intake.start()
        IntakeStep.running = intake
        # Sent by the signal handler itself, before Celery begins to stop anything.
        signals.worker_shutting_down.connect(_stop_receiving, weak=False)
        _log.info("intake started", pid=os.getpid())

    def stop(self, _parent: Any) -> None:
        """Finish what was received, for at most MRGC_DRAIN_S; hand back the rest."""
        self._end(within_s=self._settings.drain_s if self._settings is not None else 0.0)

    def terminate(self, _parent: Any) -> None:
        """Hand everything back at once."""
        self._end(within_s=0.0)

    def _end(self, *, within_s: float) -> None:
        intake, IntakeStep.running = IntakeStep.running, None
        if intake is None:
            return
        began_s = time.monotonic()
        intake.drain(within_s=within_s)
        if self._http is not None:
            self._http.close()
        _log.info("drained", s=round(time.monotonic() - began_s, 3))


def is_edge(app: Celery) -> bool:
    """Return whether this process is an edge worker: it serves `tasks.infer` and nothing else."""
    return set(app.amqp.queues.consume_from) == {EDGE_QUEUE}


def _stop_receiving(**_kwargs: Any) -> None:
    if IntakeStep.running is not None:
        IntakeStep.running.stop_receiving()
