"""Everything dies at once: all processes, and the machine with its supervisor."""

from __future__ import annotations

import pytest

from tests.faults.stack import FaultStack
from tests.faults.verdict import ensure_settled
from tests.faults.workload import Workload

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]


def test_every_process_killed_at_once_costs_no_job(stack: FaultStack, work: Workload) -> None:
    """All processes die in the same moment, twice, under load; each comes back by itself."""
    with work.feeding(backlog=100):
        for _ in range(2):
            before = len(stack.results.names())
            stack.wait_progress(before + 20)
            dead = {part: stack.kill(part) for part in stack.parts}
            for part, pid in dead.items():
                stack.wait_restarted(part, pid)
    ensure_settled(work)


def test_a_machine_that_crashes_finds_its_work_again(stack: FaultStack, work: Workload) -> None:
    """The supervisor dies with all it supervised; started again on the same data, the stack serves what was left."""
    with work.feeding(backlog=100):
        stack.wait_progress(len(stack.results.names()) + 20)
    stack.crash()
    stack.restart()
    ensure_settled(work)
