"""SIGKILL under load: each kind of process once, and then two hundred of all kinds at each source."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Final

import pytest

from tests.faults.stack import FaultStack
from tests.faults.verdict import ensure_settled
from tests.faults.workload import Workload
from tests.waiting import until

KILLS: Final = 200
#: Processes that die within one wave; work goes on between waves.
WAVE: Final = 4
#: Jobs under way at every kill.
BACKLOG: Final = 100
#: How long a wave waits for results before the next one comes regardless: kills must also meet what is just starting.
WAVE_S: Final = 6.0


@pytest.mark.timeout(240)
@pytest.mark.parametrize("part", ["worker", "engine", "enclave"])
def test_a_killed_process_costs_no_job_and_doubles_no_result(stack: FaultStack, work: Workload, part: str) -> None:
    """A process dies while jobs are under way, and is started again; each job ends with one unchanged result."""
    with work.feeding(backlog=60):
        until(lambda: work.outstanding() < len(work.sent), within_s=60, what="the first results")
        dead = stack.kill(part)
        stack.wait_restarted(part, dead)
    ensure_settled(work)


@pytest.mark.faults
@pytest.mark.timeout(1500)
def test_two_hundred_kills_at_each_source_lose_and_double_nothing(
    redis_stack: FaultStack, sqs_stack: FaultStack
) -> None:
    """Side by side, two stacks lose processes of every kind all the time; no job is lost and no result doubled."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(campaign, (redis_stack, sqs_stack)))


def campaign(stack: FaultStack) -> None:
    """Kill in waves, each kind of process about as often as any other, while jobs are under way."""
    drawn = random.Random(stack.source)
    stack.wait_ready()
    with closing(Workload(stack)) as work:
        with work.feeding(backlog=BACKLOG):
            killed = 0
            while killed < KILLS:
                killed += wave(stack, drawn, most=min(WAVE, KILLS - killed))
                assert work.outstanding() >= BACKLOG // 2, "nothing was under way: the kills tested nothing"
            stack.wait_progress(len(stack.results.names()) + BACKLOG)
        ensure_settled(work)


def wave(stack: FaultStack, drawn: random.Random, *, most: int) -> int:
    """Kill some of the processes that live, let work go on for a while; returns how many died."""
    killed = 0
    for part in drawn.sample(stack.parts, most):
        killed += stack.kill_if_alive(part)
    wanted = len(stack.results.names()) + drawn.randrange(2 * BACKLOG)
    end_s = time.monotonic() + drawn.uniform(0.2, WAVE_S)
    until(
        lambda: len(stack.results.names()) >= wanted or time.monotonic() > end_s, within_s=2 * WAVE_S, what="the wave"
    )
    return killed
