"""Stacks for the fault tests, and the table at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.stack import FaultStack, Shape
from tests.faults.tally import Tally
from tests.faults.workload import Workload

TALLY = pytest.StashKey[Tally]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin counting."""
    config.stash[TALLY] = Tally()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what was killed and what became of the jobs."""
    tally = config.stash.get(TALLY, Tally())
    if tally.jobs:
        terminalreporter.section("faults")
        for line in tally.lines():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def tally(pytestconfig: pytest.Config) -> Tally:
    """The counts of this run."""
    return pytestconfig.stash[TALLY]


@pytest.fixture(scope="session")
def redis_stack(tmp_path_factory: pytest.TempPathFactory, tally: Tally) -> Iterator[FaultStack]:
    """A stack on Redis, shared; every test leaves it serving."""
    yield from running(tmp_path_factory.mktemp("redis-stack"), Shape(), tally)


@pytest.fixture(scope="session")
def sqs_stack(tmp_path_factory: pytest.TempPathFactory, tally: Tally) -> Iterator[FaultStack]:
    """A stack on SQS, shared; every test leaves it serving."""
    yield from running(tmp_path_factory.mktemp("sqs-stack"), Shape(source="sqs"), tally)


@pytest.fixture(params=["redis", "sqs"])
def stack(request: pytest.FixtureRequest) -> FaultStack:
    """The shared stack of each source, serving."""
    stack: FaultStack = request.getfixturevalue(f"{request.param}_stack")
    stack.wait_ready()
    return stack


@pytest.fixture
def work(stack: FaultStack) -> Iterator[Workload]:
    """The test's own jobs."""
    work = Workload(stack)
    yield work
    work.close()


def running(directory: Path, shape: Shape, tally: Tally) -> Iterator[FaultStack]:
    """Run a stack until the caller is done with it."""
    stack = FaultStack(directory, shape, tally)
    try:
        stack.wait_started()
        yield stack
    finally:
        exit_code = stack.stop()
    assert exit_code == 0
