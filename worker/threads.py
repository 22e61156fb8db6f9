"""Runs the intake's loops in threads and replaces a thread that died.

A loop keeps its state outside its thread, so a replaced thread goes on where the dead one stopped; what the dead one
held in its hands comes back when its lease lapses.

May import: the standard library, structlog, worker.backoff. Called by the intake.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from worker.backoff import Backoff

#: Pause before a dead thread is replaced: short, because the others wait for it; growing, because it may die again.
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 5.0
#: A loop that ran this long starts over with the first pause.
SETTLED_S: Final = 60.0

#: How often the supervisor looks.
WATCH_S: Final = 0.05

Loop = Callable[[threading.Event], None]

_log = structlog.get_logger()


@dataclass(slots=True)
class _Life:
    loop: Loop
    stop: threading.Event
    thread: threading.Thread
    began_s: float
    backoff: Backoff
    #: Monotonic second at which the dead thread is replaced; None while it lives.
    restart_s: float | None = None


class SupervisedThreads:
    """A set of loops that run until they are told to stop.

    Args:
        died: told the name of a loop whose thread died, for the metrics.
    """

    def __init__(self, *, died: Callable[[str], None]) -> None:
        self._died = died
        self._lives: dict[str, _Life] = {}
        self._closing = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    def start(self, loops: Mapping[str, Loop]) -> None:
        """Run every loop in a thread of its own, and the supervisor beside them. Once."""
        for name, loop in loops.items():
            stop = threading.Event()
            backoff = Backoff(base_s=FIRST_PAUSE_S, cap_s=LONGEST_PAUSE_S)
            self._lives[name] = _Life(loop, stop, _start(name, loop, stop), time.monotonic(), backoff)
        self._supervisor.start()

    def tell_to_stop(self, *names: str) -> None:
        """Set the events of the named loops; their threads are not replaced any more."""
        for name in names:
            self._lives[name].stop.set()

    def stop_all(self, *, within_s: float) -> list[str]:
        """Set every event and wait for the threads.

        Returns:
            Names of the loops that did not end in time; their threads are daemons.
        """
        self._closing.set()
        self.tell_to_stop(*self._lives)
        deadline_s = time.monotonic() + within_s
        for life in self._lives.values():
            life.thread.join(max(0.0, deadline_s - time.monotonic()))
        return [name for name, life in self._lives.items() if life.thread.is_alive()]

    def _supervise(self) -> None:
        while not self._closing.wait(WATCH_S):
            for name, life in self._lives.items():
                if not life.thread.is_alive() and not life.stop.is_set():
                    self._replace(name, life)

    def _replace(self, name: str, life: _Life) -> None:
        now_s = time.monotonic()
        if life.restart_s is None:
            self._died(name)
            if now_s - life.began_s >= SETTLED_S:
                life.backoff.reset()
            life.restart_s = now_s + life.backoff.next_s()
        elif now_s >= life.restart_s:
            life.thread, life.began_s, life.restart_s = _start(name, life.loop, life.stop), now_s, None


def _start(name: str, loop: Loop, stop: threading.Event) -> threading.Thread:
    # A daemon: a loop that ignores its event must not keep the process from ending.
    thread = threading.Thread(target=_live, args=(name, loop, stop), name=name, daemon=True)
    thread.start()
    return thread


def _live(name: str, loop: Loop, stop: threading.Event) -> None:
    try:
        loop(stop)
    except Exception as err:  # noqa: BLE001  the loops that keep the process alive end here, and are replaced
        _log.error("thread died", thread=name, exc_info=err)
