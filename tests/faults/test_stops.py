"""SIGSTOP for longer than a lease: what was stopped comes back believing that nothing happened."""

from __future__ import annotations

import pytest

from tests.faults.stack import LEASE_S, FaultStack, lasting
from tests.faults.verdict import ensure_settled
from tests.faults.workload import TENANTS, Workload
from tests.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


def test_a_worker_that_slept_through_its_leases_doubles_nothing(stack: FaultStack, work: Workload) -> None:
    """The other worker takes over all that it held; awake again it stores nothing anew, and serves."""
    with work.feeding(backlog=200):
        until(lambda: stack.held("worker") and work.outstanding() < len(work.sent), within_s=60, what="it holds jobs")
    with stack.stopped("worker"):
        until(lambda: not any(map(stack.broker.waiting, TENANTS)), within_s=90, what="the other worker serves all")
    until(lambda: stack.is_ready("worker"), within_s=60, what="it serves again")
    ensure_settled(work)


@pytest.mark.parametrize("part", ["engine", "enclave", "agent", "broker", "kms"])
def test_a_part_that_slept_through_a_lease_costs_no_job(stack: FaultStack, work: Workload, part: str) -> None:
    """Whatever is stopped for longer than a lease, jobs that were under way end with one result each."""
    with work.feeding(backlog=60):
        until(lambda: work.outstanding() < len(work.sent), within_s=60, what="the first results")
        with stack.stopped(stack.broker.part if part == "broker" else part):
            lasting(1.5 * LEASE_S)
    ensure_settled(work)
