"""SIGTERM and spot notices, also while something that a drain needs is away: 30 s, and nothing is lost or doubled."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import pytest

from tests.departure.aws import SPOT, Imds
from tests.faults.conftest import running
from tests.faults.stack import FaultStack, Shape
from tests.faults.tally import Tally
from tests.faults.verdict import ensure_settled
from tests.faults.workload import Workload
from tests.waiting import until
from worker.departure import LOOK_S
from worker.departure_policy import SPOT_PATH

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


class Leaving(NamedTuple):
    """A stack whose first worker hears of its instance's end."""

    stack: FaultStack
    imds: Imds


@pytest.fixture(params=["redis", "sqs"])
def leaving(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tally: Tally
) -> Iterator[Leaving]:
    """Such a stack on each source."""
    imds = Imds()
    shape = Shape(source=request.param, env={"worker": {"MRGC_IMDS": imds.url}})
    for stack in running(tmp_path_factory.mktemp("leaving"), shape, tally):
        yield Leaving(stack, imds)
    imds.close()


def test_a_spot_notice_under_load_ends_the_worker_and_no_job(leaving: Leaving) -> None:
    """Within 30 s of seeing it the worker has exited by itself; started again there it takes nothing; others serve."""
    stack, imds = leaving
    work = Workload(stack)
    with work.feeding(backlog=200):
        until(lambda: stack.held("worker") and work.outstanding() < len(work.sent), within_s=60, what="it holds jobs")
        pid = stack.pid("worker")
        imds.values[SPOT_PATH] = SPOT
        until(lambda: stack.pid("worker") != pid, within_s=DRAIN_S + LOOK_S, what="the worker has ended")
        until(lambda: stack.reasons("worker") == ["draining"], within_s=60, what="the next one knows why it is idle")
        served = len(work.stack.results.names())
        stack.wait_progress(served + 50)
        assert stack.held("worker") == 0
    assert "process ends without Celery" not in stack.log("worker")
    # Another instance takes its place.
    del imds.values[SPOT_PATH]
    stack.wait_restarted("worker", stack.kill("worker"))
    ensure_settled(work)
    work.close()
