"""Jobs per second from queue to acknowledgement: `python -m bench.queues [--json]`.

Sealed jobs of 2 KiB, a model that does no maths, a real enclave, results created in a directory and flushed to the
disk before their jobs are acknowledged, one Redis server (append-only file, flushed every second) for all. The
arrangements take turns; a ratio is taken within one round, and its median over the rounds is reported.

With --json the last line of standard output is one object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from bench.queues import stage
from bench.queues.runs import Arrangement, Run, run

OURS: Final = "ours"
MANY: Final = "ours, 1,000 tenants"
TASK: Final = "Celery task per job"
STEP: Final = "kombu consumer step"

_BEGAN_S: Final = time.monotonic()
Rounds = Mapping[str, list[Run]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.queues", description="jobs per second, ours and Celery's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=(OURS, MANY, TASK, STEP), help="measure one arrangement")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="mrgc-bench-") as name:
        rounds = measure(Path(name), options.rounds, options.only)
    report(rounds)
    if options.json and not options.only:
        print(json.dumps(summary(rounds)), flush=True)
    return 0


def measure(directory: Path, rounds: int, only: str | None) -> Rounds:
    """Let the arrangements take turns."""
    progress("starting Redis, KMS, enclave and engine; making 1,000 tenants")
    with stage.standing(directory) as standing:
        arrangements: dict[str, Callable[[], Arrangement]] = {
            OURS: lambda: stage.ours(standing, "one", standing.tenants[:1]),
            MANY: lambda: stage.ours(standing, "many", standing.tenants),
            TASK: lambda: stage.task_per_job(standing),
            STEP: lambda: stage.consumer_step(standing),
        }
        progress("sealing jobs")
        chosen = {name: build() for name, build in arrangements.items() if only in (None, name)}
        measured: dict[str, list[Run]] = {name: [] for name in chosen}
        for number in range(rounds):
            for name, arrangement in _rotated(chosen, number):
                measured[name].append(run(arrangement, directory / f"run-{number}", standing.pids))
                progress(f"round {number + 1}/{rounds}  {name:24} {measured[name][-1].jobs_per_s:8.0f} jobs/s")
    return measured


def summary(rounds: Rounds) -> dict[str, object]:
    """Return the figures of the last line."""
    return {
        "redis_jobs_per_s": round(_median(rounds, OURS)),
        "ratio_vs_celery_task": round(_ratio(rounds, OURS, TASK), 2),
        "ratio_vs_best_kombu": round(_ratio(rounds, OURS, STEP), 2),
        "ratio_1000_tenants": round(_ratio(rounds, MANY, OURS), 3),
        "load_average": round(os.getloadavg()[0], 2),
        "celery_task_jobs_per_s": round(_median(rounds, TASK)),
        "best_kombu_jobs_per_s": round(_median(rounds, STEP)),
        "redis_1000_tenants_jobs_per_s": round(_median(rounds, MANY)),
        "rounds": len(rounds[OURS]),
    }


def report(rounds: Rounds) -> None:
    """Print a table to standard error."""
    for name, runs in rounds.items():
        rates = sorted(each.jobs_per_s for each in runs)
        progress(f"{name:24} {statistics.median(rates):7.0f} jobs/s   ({rates[0]:.0f} .. {rates[-1]:.0f})")
        costs = {part: statistics.median(each.cpu_us[part] for each in runs) for part in runs[0].cpu_us}
        shown = "  ".join(f"{part} {cost:.0f}" for part, cost in costs.items())
        progress(f"{'':24} us of processor per job: {shown}  all {sum(costs.values()):.0f}")
    progress(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} processors")


def progress(line: str) -> None:
    """Tell how far the benchmark is."""
    print(f"{time.monotonic() - _BEGAN_S:5.0f} s  {line}", file=sys.stderr, flush=True)


def _rotated(arrangements: Mapping[str, Arrangement], by: int) -> list[tuple[str, Arrangement]]:
    """Change who comes first, so that nobody always follows the same neighbour."""
    listed = list(arrangements.items())
    return listed[by % len(listed) :] + listed[: by % len(listed)]


def _median(rounds: Rounds, name: str) -> float:
    return statistics.median(each.jobs_per_s for each in rounds[name])


def _ratio(rounds: Rounds, name: str, peer: str) -> float:
    pairs = zip(rounds[name], rounds[peer], strict=True)
    return statistics.median(mine.jobs_per_s / theirs.jobs_per_s for mine, theirs in pairs)


if __name__ == "__main__":
    sys.exit(main())
