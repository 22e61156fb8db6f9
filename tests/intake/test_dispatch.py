"""Which batch goes to which engine, with real links to engines of the test's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from mrgc.errors import MrgcError
from tests.intake.peer_engine import Outcomes, PeerEngine, serve_all
from tests.waiting import until
from worker.batcher import Batcher, BatchLimits
from worker.dispatch import Dispatcher, DispatchRules
from worker.engine_link import EngineLink
from worker.engine_protocol import Served
from worker.job import Job
from worker.sources.base import Lease


def make_job(name: str, *, deaths: int = 0, expires: int = 1 << 39) -> Job:
    """A job as admission makes it."""
    lease = Lease("acme", name, name.encode(), 1e12, deaths)
    return Job(lease, name.encode(), "m", expires, 10, "file:///x")


class Desk:
    """A dispatcher with its links, and what came of its jobs."""

    def __init__(self, engines: Sequence[PeerEngine]) -> None:
        self.answered_jobs: list[str] = []
        self.expired: list[str] = []
        self.lost: set[str] = set()
        self.may_dispatch = True
        #: Set to let the dispatcher begin, once the test has queued its jobs.
        self.begin = threading.Event()
        rules = DispatchRules(
            is_held=lambda job: job.lease.message_id not in self.lost,
            may_dispatch=lambda: self.may_dispatch,
            expired=lambda job: self.expired.append(job.lease.message_id),
            submitted=lambda _batch: None,
        )
        self.dispatcher = Dispatcher(Batcher(BatchLimits(4, 1_000, 0.0), weight_of=lambda _tenant: 1), rules)
        self.links = [EngineLink(engine.address, self) for engine in engines]
        self.dispatcher.use(self.links)

    def run(self, stop: threading.Event) -> None:
        """Run the dispatcher from when it may begin."""
        self.begin.wait()
        self.dispatcher.run(stop)

    def connected(self) -> None:
        self.dispatcher.wake()

    def answered(self, jobs: Sequence[Job], outcomes: Sequence[Served | MrgcError]) -> None:
        assert len(jobs) == len(outcomes)
        self.answered_jobs += [job.lease.message_id for job in jobs]
        self.dispatcher.wake()

    def died(self, batches: Sequence[Sequence[Job]]) -> None:
        self.dispatcher.engine_died(batches)


OpenDesk = Callable[[int], tuple[Desk, list[PeerEngine]]]


@pytest.fixture
def open_desk(tmp_path: Path) -> Iterator[OpenDesk]:
    """Opens desks whose links are connected; their dispatchers wait for `begin`."""
    stop = threading.Event()
    threads: list[threading.Thread] = []
    engines: list[PeerEngine] = []
    desks: list[Desk] = []

    def open_(count: int) -> tuple[Desk, list[PeerEngine]]:
        engines.extend(PeerEngine(tmp_path / f"engine-{index}.sock") for index in range(count))
        desk = Desk(engines)
        desks.append(desk)
        loops = [*(link.run for link in desk.links), desk.run]
        threads.extend(threading.Thread(target=loop, args=(stop,)) for loop in loops)
        for thread in threads:
            thread.start()
        until(lambda: all(link.ready for link in desk.links), within_s=5, what="the links are connected")
        return desk, engines

    yield open_
    stop.set()
    for desk in desks:
        desk.begin.set()
    for engine in engines:
        engine.close()
    for thread in threads:
        thread.join(5)


def test_suspects_go_first_and_alone(open_desk: OpenDesk) -> None:
    """While others wait, a suspect shares the engine with nobody; then the others are served."""
    desk, (engine,) = open_desk(1)
    suspects = {b"s0", b"s1", b"s2", b"s3", b"once-dead"}
    company: list[int] = []

    def answer(batch: list[bytes]) -> Outcomes:
        if suspects & set(batch):
            before = len(engine.batches)
            # Long enough for a dispatcher that does not keep to it to send more.
            threading.Event().wait(0.05)
            company.append(len(engine.batches) - before)
        return serve_all(batch)

    engine.answer = answer
    desk.dispatcher.engine_died([[make_job("s0"), make_job("s1"), make_job("s2")], [make_job("s3")]])
    desk.dispatcher.add([make_job("once-dead", deaths=1)])
    for index in range(20):
        desk.dispatcher.add([make_job(f"n{index}")])
    desk.begin.set()
    until(lambda: len(desk.answered_jobs) == 25, within_s=10, what="all are served")
    assert engine.batches[:4] == [[b"s0", b"s1"], [b"s2"], [b"s3"], [b"once-dead"]]
    assert company == [0, 0, 0, 0]


def test_with_two_engines_one_goes_on(open_desk: OpenDesk) -> None:
    """Suspects keep one engine to themselves, and the other serves the rest meanwhile."""
    desk, engines = open_desk(2)
    held = threading.Event()

    def answer(batch: list[bytes]) -> Outcomes:
        if b"suspect" in batch:
            held.wait(10)
        return serve_all(batch)

    for engine in engines:
        engine.answer = answer
    desk.dispatcher.add([make_job("suspect", deaths=1)])
    for index in range(20):
        desk.dispatcher.add([make_job(f"n{index}")])
    desk.begin.set()
    until(lambda: len(desk.answered_jobs) == 20, within_s=10, what="the others are served")
    (busy,) = [engine for engine in engines if [b"suspect"] in engine.batches]
    assert busy.batches == [[b"suspect"]]
    held.set()
    until(lambda: "suspect" in desk.answered_jobs, within_s=10, what="the suspect is served")


def test_lost_and_expired_jobs_are_not_sent(open_desk: OpenDesk) -> None:
    """A job whose lease was lost is dropped silently, one that expired is reported, the others go."""
    desk, (engine,) = open_desk(1)
    desk.lost = {"lost", "lost-suspect"}
    desk.dispatcher.add([make_job("lost-suspect", deaths=1)])
    for job in (make_job("lost"), make_job("old", expires=1), make_job("good")):
        desk.dispatcher.add([job])
    desk.begin.set()
    until(lambda: desk.answered_jobs == ["good"], within_s=10, what="the good one is served")
    assert desk.expired == ["old"]
    assert engine.batches == [[b"good"]]


def test_a_store_that_is_behind_stops_dispatch(open_desk: OpenDesk) -> None:
    """No more results are made than the store takes."""
    desk, (engine,) = open_desk(1)
    desk.may_dispatch = False
    desk.dispatcher.add([make_job("waits")])
    desk.begin.set()
    desk.dispatcher.wake()
    assert engine.batches == []
    desk.may_dispatch = True
    desk.dispatcher.wake()
    until(lambda: desk.answered_jobs == ["waits"], within_s=10, what="it is served")


def test_waiting_retries_can_be_handed_back(open_desk: OpenDesk) -> None:
    """A job that waits out its backoff is given to whoever asks, once."""
    desk, _ = open_desk(1)
    job = make_job("again")
    desk.dispatcher.retry_later(job)
    assert desk.dispatcher.take_waiting_retries() == [job]
    assert desk.dispatcher.take_waiting_retries() == []
