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
from collections.abc import Iterator, Mapping, Sequence
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

    def calls(self) -> int:
        """Return how many requests a consumer has sent since the last `fill`, where they are counted; else 0."""


@dataclass(frozen=True, slots=True)
class Arrangement:
    """One way of serving jobs.

    Attributes:
        name: for the table.
        parts: its worker processes; MRGC_RESULTS_URL is set anew for every run.
        queue: holds `warm` and `full` under the labels of the same names.
        warm: jobs that are served before the clock starts.
        full: jobs that are measured, each with its tenant.
    """

    name: str
    parts: Sequence[Part]
    queue: Queue
    warm: Sequence[bytes]
    full: Sequence[tuple[Tenant, bytes]]


@dataclass(frozen=True, slots=True)
class Run:
    """What one run measured."""

    jobs_per_s: float
    #: Processor time, microseconds per job: of each process that every arrangement uses, and of the `worker`s.
    cpu_us: Mapping[str, float]
    #: What `Queue.calls` says.
    calls_per_job: float


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
    supervisor = Supervisor(directory, cwd=REPOSITORY)
    try:
        pids = {**shared, **start(supervisor, arrangement, results)}
        arrangement.queue.fill(WARM)
        _wait_drained(arrangement, directory)
        before = _cpu_s(pids)
        began_s = time.perf_counter()
        arrangement.queue.fill(FULL)
        _wait_drained(arrangement, directory)
        took_s = time.perf_counter() - began_s
        after, calls = _cpu_s(pids), arrangement.queue.calls()
    finally:
        supervisor.stop()
    _ensure_served(arrangement, directory)
    shutil.rmtree(directory)
    jobs = len(arrangement.full)
    spent_us = {name: (after[name] - before[name]) / jobs * 1e6 for name in pids}
    workers_us = sum(spent_us[part.name] for part in arrangement.parts)
    return Run(jobs / took_s, {name: spent_us[name] for name in shared} | {"worker": workers_us}, calls / jobs)


def start(supervisor: Supervisor, arrangement: Arrangement, results: Path) -> dict[str, int]:
    """Start an arrangement's workers, which put results into a directory, and return their pids by name."""
    for part in arrangement.parts:
        supervisor.start(replace(part, env={**part.env, "MRGC_RESULTS_URL": f"file://{results}/"}))
    names = [part.name for part in arrangement.parts]
    supervisor.wait_ready(*names, deadline_s=START_S, stopping=threading.Event())
    pids: dict[str, int] = json.loads((results.parent / "pids.json").read_text())
    return pids


def _wait_drained(arrangement: Arrangement, directory: Path) -> None:
    give_up_s = time.monotonic() + DRAIN_S
    while not arrangement.queue.is_drained():
        assert time.monotonic() < give_up_s, (
            f"{arrangement.name} does not drain its queue\n{_log(arrangement, directory)}"
        )
        time.sleep(POLL_S)


def _cpu_s(pids: Mapping[str, int]) -> dict[str, float]:
    """Return processor seconds by process, those of its children included."""
    return {name: sum(map(_ticks, _with_children(pid))) / os.sysconf("SC_CLK_TCK") for name, pid in pids.items()}


def _ticks(pid: int) -> int:
    """Return utime and stime of proc(5), /proc/PID/stat, all threads together."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


def _with_children(pid: int) -> Iterator[int]:
    yield pid
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in listed.read_text().split():
            yield from _with_children(int(child))


def _ensure_served(arrangement: Arrangement, directory: Path) -> None:
    results = directory / "results"
    stored, sent = sum(1 for _ in results.rglob("*.mrgc")), len(arrangement.warm) + len(arrangement.full)
    assert stored == sent, f"{arrangement.name} stored {stored} of {sent} results\n{_log(arrangement, directory)}"
    for tenant, job in random.sample(arrangement.full, min(OPENED, len(arrangement.full))):
        tenant.ensure_answers((results / result_name(job)).read_bytes(), job)


def _log(arrangement: Arrangement, directory: Path) -> str:
    """Return the end of the workers' logs."""
    return "\n".join((directory / "logs" / f"{part.name}.log").read_text()[-4_000:] for part in arrangement.parts)
