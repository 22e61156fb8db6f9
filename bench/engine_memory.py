"""What remains of one job in the engine's memory after 100 others: `python -m bench.engine_memory`.

Starts the one-machine stack, serves a job of 16 texts of 1 KiB that hold a canary, searches the engine, serves 100
ordinary jobs, searches again, and prints the hits per memory region, and what the engine's full scrubs took.
docs/threat-model.md records a run. Needs root, or the right to trace the engine.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from infra import docstrings, process_memory
from infra.demo import running_stack
from infra.local import read_env
from mrgc.client import Client
from mrgc.wire import frames
from mrgc.wire.addresses import connect, parse_address
from worker import engine_protocol

OTHER_JOBS: Final = 100
TEXTS_PER_JOB: Final = 16
#: Long texts leave more behind: their buffers are not recycled at once.
FILLER: Final = "and some more words of ordinary length " * 25
WAIT_S: Final = 600.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurement and print its table."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine_memory", description=__doc__)
    parser.add_argument("--models", type=Path, default=Path(".cache/models"), help="folder of model folders")
    options = parser.parse_args(argv)
    canary = f"canary {secrets.token_hex(16)}"
    others = docstrings.texts()
    with (
        running_stack(options.models, Console(stderr=True)) as directory,
        Client.from_env(read_env(directory / "env")) as client,
    ):
        _serve(client, [[f"{canary} {number} {canary} {FILLER}" for number in range(TEXTS_PER_JOB)]])
        at_once = _hits(directory, canary)
        before, start_s = _counters(directory), time.monotonic()
        _serve(client, [others[i * TEXTS_PER_JOB : (i + 1) * TEXTS_PER_JOB] for i in range(OTHER_JOBS)])
        after, wall_s = _counters(directory), time.monotonic() - start_s
        later = _hits(directory, canary)
    print(
        f"regions of the engine that hold the canary: after its own job {at_once or 'none'}, "
        f"after {OTHER_JOBS} other jobs {later or 'none'}"
    )
    scrubs, scrub_ms = (after[name] - before[name] for name in ("scrubs", "scrub_ms"))
    print(f"full scrubs meanwhile: {scrubs}, {scrub_ms} ms in all, {scrub_ms / wall_s / 10:.2f} % of {wall_s:.1f} s")
    return 0


def _serve(client: Client, jobs: list[list[str]]) -> None:
    states = {outcome.state for outcome in client.wait(list(client.submit_many(jobs)), timeout_s=WAIT_S)}
    if not states <= {"ok", "partial"}:
        raise SystemExit(f"jobs ended as {', '.join(sorted(states))}")


def _counters(directory: Path) -> dict[str, int]:
    with connect(parse_address(f"unix:{directory}/run/engine.sock"), timeout_s=WAIT_S) as sock:
        frames.recv(sock)
        frames.send(sock, engine_protocol.health_request(0))
        return engine_protocol.parse_health(frames.recv(sock)).counters


def _hits(directory: Path, canary: str) -> dict[str, int]:
    pid = json.loads((directory / "pids.json").read_text())["engine"]
    return dict(
        Counter(region for regions in process_memory.find(pid, [canary.encode()]).values() for region in regions)
    )


if __name__ == "__main__":
    sys.exit(main())
