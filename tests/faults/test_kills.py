"""SIGKILL under load."""

from __future__ import annotations

import pytest

from tests.faults.stack import FaultStack
from tests.faults.verdict import ensure_settled
from tests.faults.workload import Workload
from tests.waiting import until


@pytest.mark.timeout(240)
@pytest.mark.parametrize("part", ["worker", "engine", "enclave"])
def test_a_killed_process_costs_no_job_and_doubles_no_result(stack: FaultStack, work: Workload, part: str) -> None:
    """A process dies while jobs are under way, and is started again; each job ends with one unchanged result."""
    with work.feeding(backlog=60):
        until(lambda: work.outstanding() < len(work.sent), within_s=60, what="the first results")
        dead = stack.kill(part)
        stack.wait_restarted(part, dead)
    ensure_settled(work)
