"""Clocks jump: a worker's, the broker's, KMS's. libfaketime moves the wall clock of one process at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.conftest import running
from tests.faults.stack import FaultStack, Shape, lasting
from tests.faults.tally import Tally
from tests.faults.verdict import ensure_settled
from tests.faults.workload import TENANTS, Workload
from tests.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
#: Whose clocks can be moved.
PARTS = ("worker", "redis", "kms")


@pytest.fixture(scope="module")
def clocks(tmp_path_factory: pytest.TempPathFactory, tally: Tally) -> Iterator[FaultStack]:
    """A stack whose clocks can be moved, each by a file."""
    if not LIBRARIES:
        if os.environ.get("MRGC_REQUIRE_SERVERS") == "1":
            pytest.fail("libfaketime is not installed")
        pytest.skip("needs libfaketime: apt-get install libfaketime")
    directory = tmp_path_factory.mktemp("clocks")
    env = {}
    for part in PARTS:
        file = directory / f"clock.{part}"
        file.write_text("+0")
        env[part] = {
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
    yield from running(directory, Shape(env=env), tally)


@contextmanager
def moved(stack: FaultStack, part: str, by: str) -> Iterator[None]:
    """Move a part's clock inside the block."""
    file = stack.directory / f"clock.{part}"
    file.write_text(by)
    try:
        yield
    finally:
        file.write_text("+0")


@pytest.mark.parametrize("by", ["+2h", "-2h"])
@pytest.mark.parametrize("part", PARTS)
def test_a_clock_that_jumps_and_jumps_back_costs_no_job(clocks: FaultStack, part: str, by: str) -> None:
    """Leases and batches go by monotonic time; a wrong wall clock of one process loses and doubles nothing."""
    clocks.wait_ready()
    work = Workload(clocks)
    with work.feeding(backlog=60):
        clocks.wait_progress(len(clocks.results.names()) + 10)
        with moved(clocks, part, by):
            clocks.wait_progress(len(clocks.results.names()) + 60)
        clocks.wait_progress(len(clocks.results.names()) + 10)
    ensure_settled(work)
    work.close()


@pytest.mark.parametrize("by", ["+2h", "-2h"])
def test_jobs_that_meet_a_kms_with_another_clock_wait(clocks: FaultStack, by: str) -> None:
    """KMS refuses signatures of another hour: the fleet's fault and never the job's, so nothing is dead-lettered."""
    clocks.wait_ready()
    work = Workload(clocks)
    before = [clocks.broker.dead_letters(tenant) for tenant in TENANTS]
    fresh = [work.seal(tenant) for tenant in TENANTS for _ in range(10)]
    with moved(clocks, "kms", by):
        work.send(fresh)
        until(lambda: clocks.retries("key_busy") > 0, within_s=60, what="KMS refuses")
        lasting(3.0)
        assert [clocks.broker.dead_letters(tenant) for tenant in TENANTS] == before
    ensure_settled(work)
    work.close()


def test_the_enclave_refuses_expired_jobs_that_a_worker_with_a_late_clock_admits(
    clocks: FaultStack,
) -> None:
    """Statement 4: to a host two hours behind no job looks expired; the enclave's clock keeps them off the GPU."""
    clocks.wait_ready()
    work = Workload(clocks)
    jobs = [work.seal(tenant, lifetime_s=1) for tenant in TENANTS for _ in range(10)]
    until(lambda: all(each.job.expires < work.now_s() for each in jobs), within_s=10, what="the jobs expire")
    before = clocks.engine_counters()
    with moved(clocks, "worker", "-2h"):
        work.send(jobs)
        until(lambda: not any(map(clocks.broker.waiting, TENANTS)), within_s=60, what="the queues are empty")
    after = clocks.engine_counters()
    assert after["jobs"] - before["jobs"] == len(jobs)
    assert {name: after[name] - before[name] for name in ("token_batches", "texts", "tokens")} == dict.fromkeys(
        ("token_batches", "texts", "tokens"), 0
    )
    ensure_settled(work, dead=[each.job.job for each in jobs], reason="expired")
    work.close()
