"""Starts the parts of the one-machine stack, restarts those that die, and stops them all.

Each part is a process in a session of its own, so a terminal's Ctrl-C reaches the supervisor alone and parts end in
its order. `pids.json` always names the living processes, for whoever wants to measure them or to kill them.

May import: the standard library, structlog, mrgc.errors, infra.durable_file. Called by infra.local.
"""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from infra.durable_file import replace_file
from mrgc.errors import ConfigError

log = structlog.get_logger()

FIRST_DELAY_S: Final = 0.1
MAX_DELAY_S: Final = 5.0
#: A part that lived this long starts over with the first delay.
SETTLED_S: Final = 30.0
POLL_S: Final = 0.05

_PR_SET_PDEATHSIG: Final = 1  # prctl(2)


@dataclass(slots=True)
class Backoff:
    """When a dead part may start again: at once nearly, then ever later while it keeps dying young."""

    deaths: int = 0

    def delay_s(self, uptime_s: float) -> float:
        """Count one death after `uptime_s` of life and return the pause before the next start."""
        if uptime_s >= SETTLED_S:
            self.deaths = 0
        delay = min(FIRST_DELAY_S * 2.0**self.deaths, MAX_DELAY_S)
        self.deaths += 1
        return delay


@dataclass(frozen=True, slots=True)
class Part:
    """One process of the stack: what to run, and how to see that it serves."""

    name: str
    command: tuple[str, ...]
    #: The whole environment of the process; nothing is inherited, so no part sees another's credentials.
    env: Mapping[str, str]
    #: Never raises; False while the part cannot serve yet.
    is_ready: Callable[[], bool]
    #: How long SIGTERM may take before SIGKILL.
    stop_s: float = 10.0


@dataclass(slots=True)
class _Life:
    process: subprocess.Popen[bytes]
    started_s: float
    backoff: Backoff = field(default_factory=Backoff)
    #: Monotonic time of the next start; None while the process lives.
    restart_s: float | None = None


class Supervisor:
    """Owns the processes of one stack directory. Single-threaded: the caller's loop drives it."""

    def __init__(self, directory: Path, *, cwd: Path) -> None:
        self._directory = directory
        self._cwd = cwd
        self._parts: dict[str, Part] = {}
        self._lives: dict[str, _Life] = {}
        (directory / "logs").mkdir(parents=True, exist_ok=True)

    def start(self, part: Part) -> None:
        """Start a part for the first time."""
        self._parts[part.name] = part
        self._lives[part.name] = _Life(self._spawn(part), time.monotonic())
        self._publish()

    def wait_ready(self, *names: str, deadline_s: float, stopping: threading.Event) -> bool:
        """Drive the stack until all named parts are ready.

        Returns:
            False if `stopping` was set first.

        Raises:
            ConfigError: they are not ready after `deadline_s`; names the laggards.
        """
        end = time.monotonic() + deadline_s
        waiting = list(names)
        while waiting:
            self.restart_dead()
            waiting = [name for name in waiting if not self._parts[name].is_ready()]
            if waiting and time.monotonic() > end:
                raise ConfigError(f"not ready: {', '.join(waiting)}; see {self._directory}/logs")
            if stopping.wait(POLL_S):
                return False
        return True

    def restart_dead(self) -> None:
        """Notice deaths and start again those parts whose pause is over."""
        now_s = time.monotonic()
        for name, life in self._lives.items():
            status = life.process.poll()
            if status is None:
                continue
            if life.restart_s is None:
                delay_s = life.backoff.delay_s(now_s - life.started_s)
                life.restart_s = now_s + delay_s
                log.warning("part died", name=name, status=status, retry_s=delay_s)
            if now_s >= life.restart_s:
                life.process, life.started_s, life.restart_s = self._spawn(self._parts[name]), now_s, None
                self._publish()

    def stop(self) -> None:
        """End all parts in the reverse order of their start; the last to start are those that use the others."""
        for name in reversed(self._lives):
            process = self._lives[name].process
            process.send_signal(signal.SIGTERM)
            # A stopped process (SIGSTOP) would not see its SIGTERM.
            process.send_signal(signal.SIGCONT)
            try:
                process.wait(self._parts[name].stop_s)
            except subprocess.TimeoutExpired:
                log.warning("part killed", name=name)
                process.kill()
                process.wait()
        self._lives.clear()
        self._publish()

    def _spawn(self, part: Part) -> subprocess.Popen[bytes]:
        with (self._directory / "logs" / f"{part.name}.log").open("ab") as log:
            return subprocess.Popen(
                part.command,
                env=dict(part.env),
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,  # noqa: PLW1509  the supervisor has one thread
            )

    def _publish(self) -> None:
        pids = {name: life.process.pid for name, life in self._lives.items()}
        replace_file(self._directory / "pids.json", json.dumps(pids).encode())


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent dies: one that is killed cannot stop its parts."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
