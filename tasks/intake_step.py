"""The bootstep that gives the intake the life of a Celery worker.

It starts after the pool. Where the instance's metadata says that the instance goes away, the process sends itself the
signal that a service manager would send. From the moment of the signal it drains, or hands everything back in a cold
shutdown, beside Celery's own way down; and it ends the process in time, because with a broker that answers nothing
Celery would wait for its sockets twice before and after. An edge worker, `-Q infer`, has no intake.

May import: celery, structlog, worker, mrgc. Called by tasks and tasks.control.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any, ClassVar, Final

import structlog
from celery import Celery, bootsteps, signals

from mrgc.errors import ConfigError
from worker.composition import build_intake, serve_http
from worker.departure import Departure
from worker.health import HttpServer
from worker.intake import Intake
from worker.settings import WorkerSettings

#: The queue of an edge worker; the worker of a GPU host never consumes it.
EDGE_QUEUE: Final = "infer"
#: How long after MRGC_DRAIN_S the process ends at the latest; with the default of 20 s an instance that is taken away
#: after 30 s has ended by itself. What was not handed back by then lapses.
END_S: Final = 8.0
#: How soon a signal is noticed: its handler only sets a field, because it may have interrupted whatever holds a lock.
WATCH_S: Final = 0.05

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
        self._departure: Departure | None = None
        #: How long the drain may take, once a signal has asked for it.
        self._told_s: float | None = None
        self._ending = threading.Lock()
        self._ended = threading.Event()

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
        if settings.departure is not None:
            self._depart(Departure(settings.departure), intake)
        intake.start()
        IntakeStep.running = intake
        # Sent by the signal handler itself, before Celery begins to stop anything.
        signals.worker_shutting_down.connect(self._shutting_down, weak=False)
        threading.Thread(target=self._watch, args=(settings.drain_s,), name="end", daemon=True).start()
        _log.info("intake started", pid=os.getpid())

    def _depart(self, departure: Departure, intake: Intake) -> None:
        """Drain when the instance goes away; on one that goes already, receive nothing, and do not start anew for ever.

        The first look is taken here, before anything is received: what starts a worker again does not know.
        """
        if departure.look():
            intake.stop_receiving()
            departure.drained()
            return
        self._departure = departure
        leave = (lambda: os.kill(os.getpid(), signal.SIGTERM), self._ended)
        threading.Thread(target=departure.watch, args=leave, name="departure", daemon=True).start()

    def stop(self, _parent: Any) -> None:
        """Finish what was received, for at most MRGC_DRAIN_S; hand back the rest."""
        self._end(within_s=self._settings.drain_s if self._settings is not None else 0.0)

    def terminate(self, _parent: Any) -> None:
        """Hand everything back at once."""
        self._end(within_s=0.0)

    def _shutting_down(self, how: str, **_kwargs: Any) -> None:
        if IntakeStep.running is not None and self._settings is not None:
            IntakeStep.running.stop_receiving()
            self._told_s = 0.0 if how == "Cold" else self._settings.drain_s

    def _watch(self, drain_s: float) -> None:
        while not self._ended.wait(WATCH_S):
            if self._told_s is not None:
                overdue = threading.Timer(drain_s + END_S, _end_process)
                overdue.daemon = True
                overdue.start()
                self._end(within_s=self._told_s)

    def _end(self, *, within_s: float) -> None:
        # Celery and the watch both come here; the second waits until the first has drained.
        with self._ending:
            intake, IntakeStep.running = IntakeStep.running, None
            if intake is None:
                return
            began_s = time.monotonic()
            intake.drain(within_s=within_s)
            if self._departure is not None:
                self._departure.drained()
            if self._http is not None:
                self._http.close()
            self._ended.set()
            _log.info("drained", s=round(time.monotonic() - began_s, 3))


def is_edge(app: Celery) -> bool:
    """Return whether this process is an edge worker: it serves `tasks.infer` and nothing else."""
    return set(app.amqp.queues.consume_from) == {EDGE_QUEUE}


def _end_process() -> None:
    _log.warning("process ends without Celery, which waits for its broker")
    sys.stderr.flush()
    # Leases are the only truth, so nothing is lost by it; an ordinary exit would wait for the same sockets.
    os._exit(0)
