"""SIGKILL of each process in the middle of 500 jobs: nothing lost, nothing doubled, nothing changed."""

from __future__ import annotations

import pytest

from mrgc.payloads import JobOptions
from tests.e2e.conftest import RunningStack, ensure_one_object_each
from tests.waiting import until

pytestmark = pytest.mark.faults

JOBS = 500
#: Enough work that 500 jobs take some seconds even with the small model: the kill must come in the middle.
TEXTS = [f"text number {number} of this job, {'with many more words ' * number}" for number in range(16)]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("part", ["worker", "engine", "enclave"])
def test_a_killed_process_costs_no_job_and_doubles_no_result(stack: RunningStack, part: str) -> None:
    """One process dies while 500 jobs are under way; each job still ends with one unchanged result object."""
    letters = stack.dead_letters("acme")
    start = len(stack.objects())
    with stack.client("acme") as client:
        jobs = list(client.submit_many([TEXTS] * JOBS, options=JobOptions(client.settings.model, truncate=True)))
        until(lambda: len(stack.objects()) - start > 10, within_s=60, what="the first results")
        before = stack.objects()
        stack.kill(part)
        assert len(before) - start < JOBS, "the jobs were over before the kill: nothing was tested"
        outcomes = list(client.wait(jobs, timeout_s=150))
    assert [outcome.state for outcome in outcomes] == ["ok"] * JOBS
    ensure_one_object_each(stack, jobs, before)
    assert stack.dead_letters("acme") == letters
    until(lambda: stack.redis.xlen("q:acme") == 0, within_s=60, what="every message acknowledged")
    stack.ensure_a_good_job_succeeds()
