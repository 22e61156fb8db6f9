"""The object store refuses, lies, dawdles and hangs up."""

from __future__ import annotations

import pytest

from tests.faults.s3_server import Fault, Rule
from tests.faults.stack import FaultStack
from tests.faults.verdict import ensure_settled
from tests.faults.workload import Workload
from tests.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

#: Requests that meet the fault in one test.
FAULTS = 60


def every(nth: int, fault: Fault, *, method: str = "PUT") -> Rule:
    """Apply a fault to every nth request of a method."""
    return lambda asked, count: fault if asked == method and count % nth == 0 else None


RULES: dict[str, Rule] = {
    "503 slow down": every(2, Fault(503, "SlowDown")),
    "500 although it was stored": every(2, Fault(500, "InternalError", stores=True)),
    "412 although nothing is stored": every(2, Fault(412, "PreconditionFailed")),
    "412 because it was stored": every(2, Fault(412, "PreconditionFailed", stores=True)),
    "409 although nobody wins": every(2, Fault(409, "ConditionalRequestConflict")),
    "409 because it was stored": every(2, Fault(409, "ConditionalRequestConflict", stores=True)),
    "403": every(2, Fault(403, "AccessDenied")),
    "slow": every(2, Fault(delay_s=3.0)),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_a_failing_store_loses_and_doubles_nothing(stack: FaultStack, work: Workload, rule: Rule) -> None:
    """Nothing is acknowledged before it is certain that its result is stored, whatever the store answers."""
    before = stack.s3.faults
    stack.s3.fail(rule)
    try:
        with work.feeding(backlog=60):
            until(lambda: stack.s3.faults >= before + FAULTS, within_s=120, what="the store fails")
    finally:
        stack.s3.fail(None)
    ensure_settled(work)


def test_a_store_that_hangs_up_loses_and_doubles_nothing(stack: FaultStack, work: Workload) -> None:
    """Every connection to the store is reset twenty times under load, in the middle of writes among others."""
    with work.feeding(backlog=60):
        for _ in range(20):
            before = len(stack.results.names())
            stack.store_proxy.cut()
            stack.wait_progress(before + 1)
    ensure_settled(work)
