"""One link to one engine: every batch is reported exactly once, with outcomes or with a death."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mrgc.errors import AuthenticationError, EngineUnreachable, MrgcError
from tests.intake.peer_engine import Death, Outcomes, PeerEngine, result_of, serve_all
from tests.waiting import until
from worker.engine_link import SLOTS, EngineLink
from worker.engine_protocol import Health, Served
from worker.engine_watch import EngineWatch
from worker.job import Job
from worker.sources.base import Lease


class Owner:
    """Collects what the link reports."""

    def __init__(self) -> None:
        self.connections = 0
        self.answers: list[tuple[Sequence[Job], Sequence[Served | MrgcError]]] = []
        self.deaths: list[Sequence[Sequence[Job]]] = []

    def connected(self) -> None:
        self.connections += 1

    def answered(self, jobs: Sequence[Job], outcomes: Sequence[Served | MrgcError]) -> None:
        self.answers.append((jobs, outcomes))

    def died(self, batches: Sequence[Sequence[Job]]) -> None:
        self.deaths.append(batches)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[PeerEngine]:
    """An engine of the test's own."""
    engine = PeerEngine(tmp_path / "engine.sock")
    yield engine
    engine.close()


@pytest.fixture
def owner() -> Owner:
    """Whom the link reports to."""
    return Owner()


@pytest.fixture
def link(engine: PeerEngine, owner: Owner) -> Iterator[EngineLink]:
    """A connected link."""
    link = EngineLink(engine.address, owner)
    stop = threading.Event()
    thread = threading.Thread(target=link.run, args=(stop,))
    thread.start()
    until(lambda: link.ready, within_s=5, what="the link is connected")
    yield link
    stop.set()
    thread.join(5)
    assert not thread.is_alive()


def batch(*bodies: bytes) -> list[Job]:
    """Jobs as the dispatcher submits them."""
    return [Job(Lease("acme", "1-0", body, 1e12), body, "m", 1 << 39, len(body), "file:///x") for body in bodies]


def test_answers_in_any_order_reach_their_batches(link: EngineLink, engine: PeerEngine, owner: Owner) -> None:
    """Each batch gets its own outcomes, however the engine orders them."""
    first_may_end = threading.Event()

    def answer(jobs: list[bytes]) -> Outcomes:
        if jobs == [b"slow"]:
            first_may_end.wait()
        return [AuthenticationError() if job == b"bad" else Served("ok", result_of(job)) for job in jobs]

    engine.answer = answer
    slow, quick = batch(b"slow"), batch(b"good", b"bad")
    assert link.submit(slow)
    assert link.submit(quick)
    until(lambda: owner.answers, within_s=5, what="the second batch is answered first")
    jobs, outcomes = owner.answers[0]
    assert jobs == quick
    assert isinstance(outcomes[0], Served)
    assert bytes(outcomes[0].result) == result_of(b"good")
    assert isinstance(outcomes[1], AuthenticationError)
    assert link.inflight == 1
    first_may_end.set()
    until(lambda: len(owner.answers) == 2, within_s=5, what="the first batch is answered")
    assert link.inflight == 0


def test_a_full_engine_has_no_room(link: EngineLink, engine: PeerEngine, owner: Owner) -> None:
    """Room is counted in batches, so that the engine has a next one and never a queue of them."""
    engine.may_answer.clear()
    for index in range(SLOTS):
        assert link.has_room
        link.submit(batch(b"%d" % index))
    assert not link.has_room
    engine.may_answer.set()
    until(lambda: link.has_room and len(owner.answers) == SLOTS, within_s=5, what="there is room again")


def test_large_batches_do_not_block_their_submitter(link: EngineLink, engine: PeerEngine, owner: Owner) -> None:
    """A submission returns at once even when the socket is full."""
    engine.may_answer.clear()
    for _ in range(SLOTS):
        assert link.submit(batch(bytes(8 << 20)))
    engine.may_answer.set()
    until(lambda: len(owner.answers) == SLOTS, within_s=20, what="all are answered")


def test_a_death_reports_every_batch_once_and_the_link_returns(
    link: EngineLink, engine: PeerEngine, owner: Owner
) -> None:
    """All that was in the engine is in one report; after its revival the link serves again."""
    engine.may_answer.clear()
    batches = [batch(b"a"), batch(b"b", b"c")]
    for jobs in batches:
        link.submit(jobs)
    until(lambda: len(engine.batches) == 2, within_s=5, what="the engine has both")
    engine.die()
    until(lambda: owner.deaths, within_s=5, what="the death is reported")
    assert owner.deaths == [batches]
    assert link.ready is None
    assert not link.submit(batch(b"d"))
    engine.may_answer.set()
    engine.revive()
    until(lambda: link.ready, within_s=10, what="the link is connected again")
    assert link.submit(batch(b"e"))
    until(lambda: owner.answers, within_s=5, what="the next batch is answered")
    assert len(owner.deaths) == 1


def drop_one(jobs: list[bytes]) -> Outcomes:
    """Too few outcomes."""
    return serve_all(jobs)[1:]


def add_one(jobs: list[bytes]) -> Outcomes:
    """Too many outcomes."""
    return [*serve_all(jobs), Served("ok", b"more")]


def invent_status(jobs: list[bytes]) -> Outcomes:
    """A status that the specification does not know."""
    return [Served("fine", result_of(job)) for job in jobs]


@pytest.mark.parametrize("answer", [drop_one, add_one, invent_status])
def test_an_engine_that_breaks_the_protocol_is_dropped(
    link: EngineLink, engine: PeerEngine, owner: Owner, answer: object
) -> None:
    """Nothing of a malformed answer is believed: the connection ends and the batch is rerun."""
    engine.answer = answer  # type: ignore[assignment]
    jobs = batch(b"a", b"b")
    link.submit(jobs)
    until(lambda: owner.deaths, within_s=5, what="the connection is dropped")
    assert owner.deaths == [[jobs]]
    assert owner.answers == []


def test_the_watch_tells_why_an_engine_cannot_serve(engine: PeerEngine) -> None:
    """Healthy, waiting with its reason, or unreachable."""
    watch = EngineWatch(engine.address)
    assert watch.reason == EngineUnreachable.code
    stop = threading.Event()
    thread = threading.Thread(target=watch.run, args=(stop,))
    thread.start()
    try:
        until(lambda: watch.reason is None, within_s=5, what="the engine is healthy")
        engine.health = Health("waiting", "no_token", {})
        until(lambda: watch.reason == "no_token", within_s=5, what="the reason is told")
        engine.die()
        until(lambda: watch.reason == EngineUnreachable.code, within_s=5, what="it is unreachable")
    finally:
        stop.set()
        thread.join(5)


def test_an_engine_that_dies_while_it_answers_is_a_death(link: EngineLink, engine: PeerEngine, owner: Owner) -> None:
    """A crash in the forward pass reports the batch that caused it."""

    def answer(_jobs: list[bytes]) -> Outcomes:
        raise Death

    engine.answer = answer
    jobs = batch(b"a")
    link.submit(jobs)
    until(lambda: owner.deaths, within_s=5, what="the death is reported")
    assert owner.deaths == [[jobs]]
