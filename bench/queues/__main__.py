"""Jobs per second from queue to acknowledgement: `python -m bench.queues [--json]`; with `--memory`, another question.

Every arrangement does the same work for a sealed job of 2 KiB: open it at a real enclave, run a model that does no
maths, seal the result there, create it in a directory, acknowledge the job. They take turns on one Redis server with an
append-only file; a ratio is taken within one round, against the better of two variants of a peer, and its median over
the rounds is reported. What speaks for or against whom:

- The peers call the product's own code for every step of the work (bench.queues.serving), in one process with the
  consumer: no socket between intake and engine, no admission, no allocator that erases what it frees. They win by it.
- The directory of results is in memory (/dev/shm) where there is one: every arrangement makes the same system calls,
  but none waits for a disk, which would make the peers, who store one result at a time or one batch, wait far longer
  than the intake. `--directory` puts everything elsewhere.
- Nobody tells tenants that jobs have ended: the intake's notices are off. Redis does not rewrite its file meanwhile.
- Jobs wait before a clock starts, except on SQS, where sixteen senders fill the queue faster than it drains. SQS is
  infra.local_sqs, in memory, with 6 ms added to every call; its calls are counted there, sends excepted.

`--memory` tells how much memory the worker has with 1,000 and with 1,000,000 jobs waiting. With --json the last line of
standard output is one object.
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

from bench.queues import memory, stage
from bench.queues.runs import Arrangement, Run, run
from bench.queues.stage import Stage

OURS: Final = "ours"
MANY: Final = "ours, 1,000 tenants"
SQS: Final = "ours on SQS"
#: Plain Celery, one task per job. More threads only wait for one interpreter.
TASKS: Final = ("Celery task, 4 threads", "Celery task, 2 processes")
#: The best arrangement of kombu that we know.
STEPS: Final = ("kombu step", "kombu step, 2 workers")
ARRANGEMENTS: Final[Mapping[str, Callable[[Stage], Arrangement]]] = {
    OURS: stage.ours,
    MANY: stage.ours_for_all,
    SQS: stage.ours_on_sqs,
    TASKS[0]: lambda standing: stage.task_per_job(standing, "threads", 4),
    TASKS[1]: lambda standing: stage.task_per_job(standing, "prefork", 2),
    STEPS[0]: lambda standing: stage.consumer_step(standing, 1),
    STEPS[1]: lambda standing: stage.consumer_step(standing, 2),
}
IN_MEMORY: Final = Path("/dev/shm")  # noqa: S108  a directory of its own with a random name is made in it

_BEGAN_S: Final = time.monotonic()
Rounds = Mapping[str, list[Run]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = _options(argv)
    where = options.directory or (IN_MEMORY if IN_MEMORY.is_dir() else None)
    with tempfile.TemporaryDirectory(prefix="mrgc-bench-", dir=where) as name:
        if options.memory:
            figures = memory.measure(Path(name), tell=progress)
        else:
            rounds = measure(Path(name), options.rounds, only=options.only, minutes=options.minutes)
            report(rounds)
            figures = summary(rounds) if not options.only else {}
    if options.json and figures:
        print(json.dumps(figures | {"results": "memory" if where == IN_MEMORY else "directory"}), flush=True)
    return 0


def measure(directory: Path, rounds: int, *, only: str | None, minutes: float) -> Rounds:
    """Let the arrangements take turns, until another round would end too late."""
    progress("starting Redis, SQS, KMS, enclave and engine; making 1,000 tenants")
    with stage.standing(directory) as standing:
        progress("sealing jobs")
        chosen = {name: build(standing) for name, build in ARRANGEMENTS.items() if only in (None, name)}
        measured: dict[str, list[Run]] = {name: [] for name in chosen}
        end_s, longest_s = _BEGAN_S + 60 * minutes, 0.0
        for number in range(rounds):
            began_s = time.monotonic()
            if number and began_s + longest_s > end_s:
                break
            for name in _order(list(chosen), number):
                measured[name].append(run(chosen[name], directory / f"run-{number}", standing.pids))
                progress(f"round {number + 1}/{rounds}  {name:24} {measured[name][-1].jobs_per_s:8.0f} jobs/s")
            longest_s = max(longest_s, time.monotonic() - began_s)
    return measured


def summary(rounds: Rounds) -> dict[str, object]:
    """Return the figures of the last line."""
    return {
        "redis_jobs_per_s": round(_median(rounds, OURS)),
        "ratio_vs_celery_task": round(_ratio(rounds, OURS, *TASKS), 2),
        "ratio_vs_best_kombu": round(_ratio(rounds, OURS, *STEPS), 2),
        "sqs_calls_per_job": round(statistics.median(each.calls_per_job for each in rounds[SQS]), 3),
        "ratio_1000_tenants": round(_ratio(rounds, MANY, OURS), 3),
        "load_average": round(os.getloadavg()[0], 2),
        "jobs_per_s": {name: round(_median(rounds, name)) for name in rounds},
        "cpu_us_per_job": {name: round(sum(_costs(runs).values())) for name, runs in rounds.items()},
        "rounds": len(_by_round(rounds, OURS)),
    }


def report(rounds: Rounds) -> None:
    """Print a table to standard error."""
    for name, runs in rounds.items():
        rates = sorted(each.jobs_per_s for each in runs)
        progress(f"{name:24} {statistics.median(rates):7.0f} jobs/s   ({rates[0]:.0f} .. {rates[-1]:.0f})")
        costs = _costs(runs)
        shown = "  ".join(f"{part} {cost:.0f}" for part, cost in costs.items())
        progress(f"{'':24} us of processor per job: {shown}  all {sum(costs.values()):.0f}")
    progress(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} processors")


def progress(line: str) -> None:
    """Tell how far the benchmark is."""
    print(f"{time.monotonic() - _BEGAN_S:5.0f} s  {line}", file=sys.stderr, flush=True)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.queues", description="jobs per second, ours and Celery's")
    parser.add_argument("--rounds", type=int, default=4, help="at most [4]")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin no round that would end later [9]")
    parser.add_argument("--only", choices=tuple(ARRANGEMENTS), help="measure one arrangement")
    parser.add_argument("--memory", action="store_true", help="measure the worker's memory instead")
    parser.add_argument("--directory", type=Path, help="for queue, results and sockets; in memory by default")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser.parse_args(argv)


def _order(names: Sequence[str], by: int) -> list[str]:
    """Return the order of one round: another first one each time, so that nobody always follows the same neighbour.

    One tenant and a thousand come in turns, twice: the tenth part by which they may differ is less than what this
    machine changes from one minute to the next.
    """
    pair = [name for name in (OURS, MANY) if name in names]
    pair = pair[::-1] if by % 2 else pair
    others = [name for name in names if name not in pair]
    turn = by % max(1, len(others))
    return [*pair, *others[turn:], *others[:turn], *pair[::-1]]


def _median(rounds: Rounds, name: str) -> float:
    return statistics.median(_rates(rounds, name))


def _costs(runs: Sequence[Run]) -> dict[str, float]:
    return {part: statistics.median(each.cpu_us[part] for each in runs) for part in runs[0].cpu_us}


def _ratio(rounds: Rounds, name: str, *peers: str) -> float:
    """Return the median over the rounds of how many times as fast it was as the best of the peers."""
    best: list[float] = [max(rates) for rates in zip(*(_by_round(rounds, peer) for peer in peers), strict=True)]
    return statistics.median(mine / peer for mine, peer in zip(_by_round(rounds, name), best, strict=True))


def _by_round(rounds: Rounds, name: str) -> list[float]:
    """Return the rate of each round: of those that came twice in it, the mean."""
    rates, twice = _rates(rounds, name), 2 if name in (OURS, MANY) else 1
    return [statistics.mean(rates[start : start + twice]) for start in range(0, len(rates), twice)]


def _rates(rounds: Rounds, name: str) -> list[float]:
    return [each.jobs_per_s for each in rounds[name]]


if __name__ == "__main__":
    sys.exit(main())
