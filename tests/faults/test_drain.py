"""SIGTERM while something that a drain needs is away: it ends within 30 s, and nothing is lost or doubled."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.faults.stack import FaultStack
from tests.faults.verdict import ensure_settled
from tests.faults.workload import Workload
from tests.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

#: What a spot instance's notice and a service manager's stop leave for a drain.
DRAIN_S = 30.0

AWAY: dict[str, Callable[[FaultStack], AbstractContextManager[None]]] = {
    "nothing": lambda _stack: contextlib.nullcontext(),
    "broker silent": lambda stack: stack.broker_proxy.silent(),
    "broker refuses": lambda stack: stack.broker_proxy.refusing(),
    "store silent": lambda stack: stack.store_proxy.silent(),
    "engine stopped": lambda stack: stack.stopped("engine"),
    "enclave stopped": lambda stack: stack.stopped("enclave"),
}


@pytest.mark.parametrize("away", AWAY.values(), ids=AWAY.keys())
def test_a_drain_ends_in_time_whatever_is_away(
    stack: FaultStack, work: Workload, away: Callable[[FaultStack], AbstractContextManager[None]]
) -> None:
    """The worker exits on SIGTERM before it would be killed; what it held is served by others, once."""
    with work.feeding(backlog=200):
        until(lambda: stack.held("worker") and work.outstanding() < len(work.sent), within_s=60, what="it holds jobs")
        with away(stack):
            pid = stack.pid("worker")
            os.kill(pid, signal.SIGTERM)
            until(lambda: stack.pid("worker") != pid, within_s=DRAIN_S, what="the worker has ended")
    ensure_settled(work)
    until(lambda: stack.is_ready("worker"), within_s=60, what="the next one serves")
