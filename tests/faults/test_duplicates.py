"""Statement 4 of docs/threat-model.md: however often a job is delivered, it has one result, and none once expired."""

from __future__ import annotations

import pytest

from mrgc.results import object_name
from tests.faults.stack import WORKERS, FaultStack
from tests.faults.verdict import ensure_settled
from tests.faults.workload import TENANTS, Workload
from tests.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

COPIES = 100
#: How long a job lives that has to be served before it expires.
SHORT_LIFE_S = 25


def test_a_job_delivered_a_hundred_times_leaves_one_unchanged_result(stack: FaultStack, work: Workload) -> None:
    """A hundred copies go to two workers at once while every process is killed once; the first result stays."""
    (sent,) = work.add(1, tenant="acme")
    for part in (None, *WORKERS, "engine", "enclave", stack.broker.part):
        stack.broker.send("acme", sent.sealed, copies=COPIES // 5)
        if part is not None:
            stack.wait_restarted(part, stack.kill(part))
    until(lambda: not any(map(stack.broker.waiting, TENANTS)), within_s=120, what="every copy is acknowledged")
    first = stack.results.objects()[object_name(sent.job)]
    stack.broker.send("acme", sent.sealed, copies=COPIES)
    ensure_settled(work)
    assert stack.results.objects()[object_name(sent.job)] == first


def test_expired_jobs_never_reach_the_gpu(stack: FaultStack, work: Workload) -> None:
    """Jobs that expired in the queue are dead letters, and the engine runs no forward pass for them."""
    jobs = [work.seal(tenant, lifetime_s=1) for tenant in TENANTS for _ in range(20)]
    until(lambda: all(each.job.expires < work.now_s() for each in jobs), within_s=10, what="the jobs expire")
    before = stack.engine_counters()
    work.send(jobs)
    until(lambda: not any(map(stack.broker.waiting, TENANTS)), within_s=60, what="the queues are empty")
    assert stack.engine_counters() == before
    ensure_settled(work, dead=[each.job.job for each in jobs], reason="expired")


def test_a_replay_recreates_a_deleted_result_only_until_the_job_expires(stack: FaultStack, work: Workload) -> None:
    """A tenant deletes a result: a copy of the job makes it anew while the job lives, and never afterwards."""
    (sent,) = work.add(1, tenant="acme", lifetime_s=SHORT_LIFE_S)
    name = object_name(sent.job)
    for _ in range(2):
        until(lambda: name in stack.results.objects(), within_s=SHORT_LIFE_S, what="the result is stored")
        stack.s3.delete(name)
        stack.broker.send("acme", sent.sealed, copies=1)
    until(lambda: sent.job.expires < work.now_s(), within_s=2 * SHORT_LIFE_S, what="the job expires")
    until(lambda: not stack.broker.waiting("acme"), within_s=60, what="the queue is empty")
    stack.s3.delete(name)
    stack.broker.send("acme", sent.sealed, copies=1)
    ensure_settled(work, dead=[sent.job.job], reason="expired")
