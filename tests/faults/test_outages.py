"""Two minutes without KMS, store, enclave or broker: nothing is dead-lettered, and nobody has to help."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pytest

from tests.faults.s3_server import Fault
from tests.faults.stack import WORKERS, FaultStack, Shape, Source, lasting
from tests.faults.tally import Tally
from tests.faults.verdict import ensure_settled
from tests.faults.workload import TENANTS, Workload
from tests.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

OUTAGE_S = 120.0
#: Jobs that meet the outage.
JOBS = 300
#: How soon /readyz must say what is away, and how soon it must be well again.
TELL_S = 60.0
RECOVER_S = 60.0


@contextlib.contextmanager
def without_store(stack: FaultStack) -> Iterator[None]:
    """Nobody listens at first; for the second half every write is told to slow down."""
    began_s = time.monotonic()
    with contextlib.ExitStack() as away:
        away.enter_context(stack.store_proxy.refusing())

        def slow_down() -> None:
            lasting(OUTAGE_S / 2 - (time.monotonic() - began_s))
            stack.s3.fail(lambda _method, _nth: Fault(503, "SlowDown"))
            away.close()

        with ThreadPoolExecutor(1) as pool:
            turned = pool.submit(slow_down)
            yield
            turned.result()
    stack.s3.fail(None)


@dataclass(frozen=True, slots=True)
class Outage:
    """What is away, at which stack, and what /readyz says meanwhile."""

    source: Source
    away: Callable[[FaultStack], AbstractContextManager[None]]
    reason: str

    @property
    def is_the_brokers(self) -> bool:
        """Whether nothing can be sent meanwhile."""
        return self.reason == "queue_unavailable"


OUTAGES = {
    "kms": Outage("redis", lambda stack: stack.down("kms"), "key_busy"),
    "store": Outage("sqs", without_store, "store_unavailable"),
    "enclave": Outage("sqs", lambda stack: stack.down("enclave"), "enclave"),
    "redis": Outage("redis", lambda stack: stack.down("redis"), "queue_unavailable"),
    "sqs": Outage("sqs", lambda stack: stack.down("sqs"), "queue_unavailable"),
}


def test_two_minutes_of_an_outage_dead_letter_nothing_and_end_by_themselves(
    tmp_path_factory: pytest.TempPathFactory, tally: Tally
) -> None:
    """KMS, store, enclave, Redis and SQS are away side by side, each at a stack of its own, for two minutes."""
    stacks = {
        name: FaultStack(tmp_path_factory.mktemp(f"without-{name}"), Shape(source=outage.source), tally)
        for name, outage in OUTAGES.items()
    }
    try:
        for stack in stacks.values():
            stack.wait_started()
        with ThreadPoolExecutor(len(OUTAGES)) as pool:
            ends = [pool.submit(outlast, stacks[name], outage) for name, outage in OUTAGES.items()]
        assert [end.exception() for end in ends] == [None] * len(ends)
    finally:
        exit_codes = [stack.stop() for stack in stacks.values()]
    assert exit_codes == [0] * len(exit_codes)


def outlast(stack: FaultStack, outage: Outage) -> None:
    """Go through one outage at one stack, from a full queue to the last result.

    Jobs are sent while the part is away, because what is sent before may all be served before. Only a broker has to
    have them.
    """
    work = Workload(stack)
    # Sealed before, because tenants need KMS for it; the enclave has not seen their data keys.
    jobs = [work.seal(tenant) for tenant in TENANTS for _ in range(JOBS // 2)]
    if outage.is_the_brokers:
        work.send(jobs)
    began_s = time.monotonic()
    with outage.away(stack):
        if not outage.is_the_brokers:
            work.send(jobs)
        until(lambda: tells(stack, outage.reason), within_s=TELL_S, what=f"/readyz says {outage.reason}")
        lasting(began_s + OUTAGE_S - time.monotonic())
        assert tells(stack, outage.reason)
    until(lambda: all(map(stack.is_ready, WORKERS)), within_s=RECOVER_S, what="both workers serve again")
    ensure_settled(work)
    work.close()


def tells(stack: FaultStack, reason: str) -> bool:
    """Whether a worker is not ready for this reason."""
    return any(found.startswith(reason) for worker in WORKERS for found in stack.reasons(worker))
