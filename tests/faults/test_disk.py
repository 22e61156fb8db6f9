"""A disk runs full: that of the results, and that of the broker's log."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import running
from tests.faults.stack import FaultStack, Shape, lasting
from tests.faults.tally import Tally
from tests.faults.verdict import ensure_settled
from tests.faults.workload import Workload
from tests.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

#: A mount namespace of the stack's own; it needs no privilege where users may make namespaces.
UNSHARE = ("unshare", "--map-root-user", "--mount")
#: Moves each of the folders before "--" to a small file system, then becomes the command behind it.
SMALL_DISKS = """
while [ "$1" != -- ]; do
    cp -a "$1" "$1.before" && mount -t tmpfs -o size=48m tmpfs "$1" && cp -a "$1.before/." "$1" || exit 1
    shift
done
shift
exec "$@"
"""
#: How long a disk stays full: the broker dies and is started again several times in it.
FULL_S = 10.0


@pytest.fixture(scope="module")
def small_disks(tmp_path_factory: pytest.TempPathFactory, tally: Tally) -> Iterator[FaultStack]:
    """A stack with a directory of results, on file systems that fill up quickly."""
    if shutil.which("unshare") is None or subprocess.run([*UNSHARE, "true"], check=False).returncode:
        pytest.skip("needs util-linux's unshare, and the right to make a mount namespace")
    directory = tmp_path_factory.mktemp("small-disks")
    folders = [directory / name for name in ("results", "redis")]
    for folder in folders:
        folder.mkdir()
    prefix = (*UNSHARE, "sh", "-c", SMALL_DISKS, "sh", *map(str, folders), "--")
    yield from running(directory, Shape(store="directory", prefix=prefix), tally)


def fill(stack: FaultStack, folder: str) -> Path:
    """Write until the file system of a folder is full; returns the file that fills it."""
    ballast = stack.inside(folder) / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return ballast


def test_a_full_disk_of_results_stops_receiving_and_loses_nothing(small_disks: FaultStack) -> None:
    """While no result can be stored none is acknowledged and the workers say why; with space again all are served."""
    stack = small_disks
    stack.wait_ready()
    work = Workload(stack)
    with work.feeding(backlog=60):
        stack.wait_progress(len(stack.results.names()) + 10)
        ballast = fill(stack, "results")
        until(lambda: "store_unavailable" in stack.reasons("worker"), within_s=60, what="the outage is told")
        ballast.unlink()
    until(lambda: stack.is_ready("worker"), within_s=60, what="it serves again")
    ensure_settled(work)
    work.close()


def test_a_full_disk_of_the_broker_loses_nothing_that_was_confirmed(small_disks: FaultStack) -> None:
    """Redis cannot write its log, and dies again and again; with space again every confirmed job is served."""
    stack = small_disks
    stack.wait_ready()
    work = Workload(stack)
    with work.feeding(backlog=60):
        stack.wait_progress(len(stack.results.names()) + 10)
        ballast = fill(stack, "redis")
        until(lambda: "queue_unavailable" in stack.reasons("worker"), within_s=60, what="the outage is told")
        lasting(FULL_S)
        ballast.unlink()
    until(lambda: stack.is_ready("worker"), within_s=60, what="it serves again")
    ensure_settled(work)
    work.close()
