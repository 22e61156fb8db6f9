"""One run of one arrangement: a fresh worker, a warm-up, a full queue, and the time until it is drained.

May import: everything.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from bench.queues.tenants import Tenant, result_name
from infra.local_enclave import REPOSITORY
from infra.supervisor import Part, Supervisor

START_S: Final = 60.0
DRAIN_S: Final = 120.0
POLL_S: Final = 0.02
#: Results of a run that are opened and compared with their jobs; all are counted.
OPENED: Final = 64

WARM: Final = "warm"
FULL: Final = "full"


class Queue(Protocol):
    """What a run needs of the queues of its arrangement."""

    def fill(self, label: str) -> None:
        """Put the jobs that were prepared under a label in place at once."""

    def is_drained(self) -> bool:
        """Return whether every job was acknowledged."""


@dataclass(frozen=True, slots=True)
class Arrangement:
    """One way of serving jobs.

    Attributes:
        name: for the table.
        part: its worker process; MRGC_RESULTS_URL is set anew for every run.
        queue: holds `warm` and `full` under the labels of the same names.
        warm: jobs that are served before the clock starts.
        full: jobs that are measured, each with its tenant.
    """

    name: str
    part: Part
    queue: Queue
    warm: Sequence[bytes]
    full: Sequence[tuple[Tenant, bytes]]


@dataclass(frozen=True, slots=True)
class Run:
    """What one run measured."""

    jobs_per_s: float
    #: Processor time by process, microseconds per job.
    cpu_us: Mapping[str, float]


def run(arrangement: Arrangement, directory: Path, shared: Mapping[str, int]) -> Run:
    """Measure one arrangement once.

    Args:
        arrangement: what to measure.
        directory: for results and logs; emptied afterwards.
        shared: pids of the processes that every arrangement uses, by name.

    Raises:
        AssertionError: jobs were left, or results are missing or wrong.
    """
    results = directory / "results"
    results.mkdir(parents=True)
    part = replace(arrangement.part, env={**arrangement.part.env, "MRGC_RESULTS_URL": f"file://{results}/"})
    supervisor = Supervisor(directory, cwd=REPOSITORY)
    try:
        supervisor.start(part)
        supervisor.wait_ready(part.name, deadline_s=START_S, stopping=threading.Event())
        arrangement.queue.fill(WARM)
        _wait_drained(arrangement, directory)
        pids = {**shared, **json.loads((directory / "pids.json").read_text())}
        before = _cpu_s(pids)
        arrangement.queue.fill(FULL)
        filled_s = time.perf_counter()
        _wait_drained(arrangement, directory)
        took_s = time.perf_counter() - filled_s
        after = _cpu_s(pids)
    finally:
        supervisor.stop()
    _ensure_served(arrangement, directory)
    shutil.rmtree(directory)
    jobs = len(arrangement.full)
    return Run(jobs / took_s, {name: (after[name] - before[name]) / jobs * 1e6 for name in pids})


def _wait_drained(arrangement: Arrangement, directory: Path) -> None:
    give_up_s = time.monotonic() + DRAIN_S
    while not arrangement.queue.is_drained():
        assert time.monotonic() < give_up_s, (
            f"{arrangement.name} does not drain its queue\n{_log(arrangement, directory)}"
        )
        time.sleep(POLL_S)


def _cpu_s(pids: Mapping[str, int]) -> dict[str, float]:
    """Return processor seconds by process: utime and stime of proc(5), /proc/PID/stat, all threads together."""
    ticks = {
        name: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13] for name, pid in pids.items()
    }
    return {name: sum(map(int, each)) / os.sysconf("SC_CLK_TCK") for name, each in ticks.items()}


def _ensure_served(arrangement: Arrangement, directory: Path) -> None:
    results = directory / "results"
    stored, sent = sum(1 for _ in results.rglob("*.mrgc")), len(arrangement.warm) + len(arrangement.full)
    assert stored == sent, f"{arrangement.name} stored {stored} of {sent} results\n{_log(arrangement, directory)}"
    for tenant, job in random.sample(arrangement.full, min(OPENED, len(arrangement.full))):
        tenant.ensure_answers((results / result_name(job)).read_bytes(), job)


def _log(arrangement: Arrangement, directory: Path) -> str:
    """Return the end of the worker's log."""
    return (directory / "logs" / f"{arrangement.part.name}.log").read_text()[-4_000:]
