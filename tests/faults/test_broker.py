"""The broker fails in ways short of an outage: answers get lost, connections are cut."""

from __future__ import annotations

import pytest

from tests.faults.stack import FaultStack
from tests.faults.verdict import ensure_settled
from tests.faults.workload import Workload
from tests.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

#: Answers that are lost in one test: enough that both workers meet some.
LOST = 6


@pytest.mark.parametrize("request_kind", ["receive", "ack", "recover"])
def test_a_lost_answer_loses_and_doubles_nothing(stack: FaultStack, work: Workload, request_kind: str) -> None:
    """The broker carries a request out, and its answer never arrives: the request is repeated, or its lease lapses."""
    if request_kind not in stack.broker.requests:
        pytest.skip(f"{stack.source} has no such request")
    proxy = stack.broker_proxy
    before = proxy.lost
    with work.feeding(backlog=60):
        until(lambda: work.outstanding() < len(work.sent), within_s=60, what="the first results")
        proxy.lose_answers(stack.broker.requests[request_kind], times=LOST)
        until(lambda: proxy.lost == before + LOST, within_s=120, what="answers are lost")
    ensure_settled(work)


def test_a_lost_answer_to_a_renewal_loses_and_doubles_nothing(stack: FaultStack, work: Workload) -> None:
    """A lease is renewed, or nobody knows whether it is: whoever serves the job then, it ends with one result."""
    proxy = stack.broker_proxy
    before = proxy.lost
    with work.feeding(backlog=60):
        until(lambda: work.outstanding() < len(work.sent), within_s=60, what="the first results")
        # While it serves, jobs end before half of their lease is over, and nothing is renewed.
        with stack.stopped("engine"):
            proxy.lose_answers(stack.broker.requests["extend"], times=LOST)
            until(lambda: proxy.lost == before + LOST, within_s=120, what="answers are lost")
    ensure_settled(work)


def test_a_lost_answer_to_a_dead_letter_makes_no_second_one(stack: FaultStack, work: Workload) -> None:
    """A job that cannot be served is moved once, although the broker's confirmation got lost."""
    bad = [work.seal("acme", lifetime_s=1) for _ in range(3)]
    until(lambda: all(each.job.expires < work.now_s() for each in bad), within_s=10, what="the jobs expire")
    before = stack.broker_proxy.lost
    stack.broker_proxy.lose_answers(stack.broker.requests["dead_letter"], times=2)
    work.send(bad)
    until(lambda: stack.broker_proxy.lost == before + 2, within_s=60, what="answers are lost")
    ensure_settled(work, dead=[each.job.job for each in bad], reason="expired")


def test_cut_connections_lose_and_double_nothing(stack: FaultStack, work: Workload) -> None:
    """Every connection to the broker is cut twenty times under load, as by a failover."""
    with work.feeding(backlog=60):
        for _ in range(20):
            before = len(stack.results.names())
            stack.broker.cut_clients()
            stack.broker_proxy.cut()
            stack.wait_progress(before + 1)
    ensure_settled(work)
