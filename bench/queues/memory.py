"""Memory of the worker process with 1,000 and with 1,000,000 jobs waiting for it.

At both levels the same worker serves as many jobs, and what it holds resident is looked at all the while. The waiting
jobs are 1,000 different ones over and over, shorter than in the other runs so that Redis holds a million of them in
about a gigabyte. A result that is there already is no error, so the store is as busy as ever and stays small.

May import: everything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from bench.queues import runs, stage
from infra.local_enclave import REPOSITORY
from infra.supervisor import Supervisor
from worker.sources.redis_layout import queue_stream
from worker.sources.redis_streams import connect

LEVELS: Final = (1_000, 1_000_000)
#: Jobs that are served at each level.
SERVED: Final = 20_000
DISTINCT: Final = 1_000
BODY_BYTES: Final = 256
SERVE_S: Final = 240.0


def measure(directory: Path, *, tell: Callable[[str], None]) -> dict[str, object]:
    """Return the most that was resident at each level, in MiB, and the ratio of the two."""
    most: dict[int, float] = {}
    tell("starting Redis, KMS, enclave and engine")
    with stage.standing(directory, count=1) as standing:
        arrangement = stage.ours(standing)
        client, stream = connect(standing.stack.redis_url("operator")), queue_stream(standing.tenants[0].name)
        jobs = [standing.tenants[0].seal(body_bytes=BODY_BYTES) for _ in range(DISTINCT)]
        supervisor = Supervisor(directory / "run-memory", cwd=REPOSITORY)
        try:
            (results := directory / "run-memory" / "results").mkdir()
            pid = runs.start(supervisor, arrangement, results)["worker"]
            for level in LEVELS:
                _add(client, stream, jobs, level)
                tell(f"{level} jobs wait")
                most[level] = _serve(client, stream, jobs, level, pid)
                tell(f"{most[level]:.1f} MiB at most while {SERVED} were served")
            client.xtrim(stream, maxlen=0)
        finally:
            supervisor.stop()
    few, many = (round(most[level], 1) for level in LEVELS)
    return {"worker_mib_1000": few, "worker_mib_1000000": many, "ratio_memory": round(many / few, 3)}


def _serve(client: Any, stream: str, jobs: list[bytes], level: int, pid: int) -> float:
    """Keep about `level` jobs waiting until so many have been served; return the most MiB that were resident."""
    most_kib, added, began_with = 0, 0, int(client.xlen(stream))
    give_up_s = time.monotonic() + SERVE_S
    while (served := began_with + added - client.xlen(stream)) < SERVED:
        assert time.monotonic() < give_up_s, "jobs are not served"
        # A thousand at a time; what is served of a million is not worth replacing.
        if added < served <= SERVED - DISTINCT and level < SERVED:
            _add(client, stream, jobs, DISTINCT)
            added += DISTINCT
        most_kib = max(most_kib, _resident_kib(pid))
        time.sleep(runs.POLL_S)
    return most_kib / 1_024


def _add(client: Any, stream: str, jobs: list[bytes], count: int) -> None:
    for _ in range(count // len(jobs)):
        with client.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.xadd(stream, {"job": job})
            pipe.execute()


def _resident_kib(pid: int) -> int:
    """Return VmRSS of proc(5), /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
