"""When a scrub is due, and that a forward stage does it then and not while a batch is in flight."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrgc.errors import DeviceOutOfMemory, ModelError
from worker.engine.counters import Counters
from worker.engine.forwarding import IN_FLIGHT, Forwarder
from worker.engine.inbox import Taken
from worker.engine.jobs import Batch, Job, Row
from worker.engine.scrubbing import IDLE_S, Scrubber, ScrubPolicy
from worker.models.answers import EmbeddingAnswer
from worker.models.base import Answer, Ids, Outputs, Tokens
from worker.models.overlap import Flight, Overlapping


class Device:
    """A model on a device of its own queues, which writes down what happens in which order.

    Each row comes back as its first id. It holds `most_tokens` of one batch.
    """

    name, digest, dimensions, max_tokens, vocabulary = "device", "0" * 64, 1, 8, 100

    def __init__(self, most_tokens: int = 100) -> None:
        self.events: list[str] = []
        self.in_flight: list[Sequence[Ids]] = []
        self._most_tokens = most_tokens

    def answer(self, items: int, parameters: Mapping[str, object]) -> Answer:
        raise NotImplementedError

    def tokenise(self, inputs: Sequence[object]) -> list[Tokens | ModelError]:
        raise NotImplementedError

    def launch(self, rows: Sequence[Ids]) -> Flight:
        if sum(map(len, rows)) > self._most_tokens:
            raise DeviceOutOfMemory("no room")
        outputs = np.array([[row[0]] for row in rows], dtype=np.float32)
        self.in_flight.append(rows)
        self.events.append(f"launch {len(rows)}")
        device = self

        class Launched:
            def collect(self) -> Outputs:
                assert device.in_flight.pop(0) is rows, "out of order"
                device.events.append(f"collect {len(rows)}")
                return outputs

        return Launched()

    def forward(self, rows: Sequence[Ids]) -> Outputs:
        return self.launch(rows).collect()

    def warm_up(self, budget_tokens: int) -> None:
        raise NotImplementedError

    def scrub(self) -> None:
        assert not self.in_flight
        self.events.append("scrub")


class Stage:
    """A forward stage over a device, and the jobs that went through it."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.scrubber = Scrubber([device], Counters())
        self.forwarder = Forwarder(self.scrubber)
        self.jobs: list[Job] = []

    def run(self, *ids: int, company: str = "", length: int = 1) -> list[Batch]:
        """Hand in a token batch with one row for each id."""
        answer = EmbeddingAnswer(len(ids), 1)
        job = Job(memoryview(b""), None, answer=answer, items=len(ids))  # type: ignore[arg-type]  # nobody looks at None
        batch = Batch([], lambda _: None, jobs=[job], pending_rows=len(ids))
        rows = [Row(batch, job, answer, place, np.full(length, each, np.int32)) for place, each in enumerate(ids)]
        self.jobs.append(job)
        return self.forwarder.run(Taken(self.device, company, rows))

    def served(self) -> list[list[float]]:
        """What each job was answered with."""
        return [
            [] if job.answer is None else job.answer.tensors().arrays["embeddings"].ravel().tolist()
            for job in self.jobs
        ]


@pytest.fixture
def stage() -> Stage:
    """A stage over a device with room."""
    return Stage(Device())


def test_the_next_batch_is_launched_before_the_last_is_collected(stage: Stage) -> None:
    """The device always has a batch waiting behind the one that it computes."""
    assert isinstance(stage.device, Overlapping)
    finished = [len(stage.run(number, number)) for number in (1, 2, 3, 4)]
    finished.append(len(stage.forwarder.collect_all()))
    assert finished == [0] * IN_FLIGHT + [1] * (4 - IN_FLIGHT) + [IN_FLIGHT]
    assert stage.device.events[: IN_FLIGHT + 1] == ["launch 2"] * IN_FLIGHT + ["collect 2"]
    assert stage.served() == [[1, 1], [2, 2], [3, 3], [4, 4]]


def test_a_batch_that_does_not_fit_waits_for_those_in_flight_and_ends_in_a_scrub() -> None:
    """Results come back in order, halves are run alone, and what the attempt left is overwritten."""
    stage = Stage(Device(most_tokens=2))
    stage.run(1)
    stage.run(2, 3, 4, 5)
    assert stage.served() == [[1], [2, 3, 4, 5]]
    assert stage.device.events == [
        "launch 1", "collect 1", "launch 2", "collect 2", "launch 2", "collect 2", "scrub"
    ]  # fmt: skip


def test_a_scrub_comes_between_an_exclusive_tenant_and_anybody_else(stage: Stage) -> None:
    """In both directions, with nothing in flight; rows of one company follow each other without."""
    for company in ("", "", "acme", "acme", "globex", ""):
        stage.run(1, company=company)
    stage.forwarder.collect_all()
    scrubs = [event for event in stage.device.events if not event.startswith("collect")]
    assert scrubs == [*["launch 1"] * 2, "scrub", *["launch 1"] * 2, "scrub", "launch 1", "scrub", "launch 1"]


@given(companies=st.lists(st.sampled_from(["", "acme", "globex"]), max_size=20), scrubs=st.sets(st.integers(0, 19)))
def test_no_company_follows_another_without_a_scrub(companies: list[str], scrubs: set[int]) -> None:
    """Whatever else scrubs in between, two companies never meet, and one alone is never scrubbed for itself."""
    policy = ScrubPolicy()
    last: str | None = None
    for place, company in enumerate(companies):
        if place in scrubs:
            policy.note_scrub()
            last = None
        assert policy.is_due_before(company) == (last is not None and last != company)
        policy.note_run(company)
        last = company
        assert policy.patience_s == IDLE_S
    policy.note_scrub()
    assert policy.patience_s is None


def test_a_scrub_frees_what_only_a_cycle_keeps() -> None:
    """An idle process would otherwise keep a traceback's texts until much else is allocated."""

    class Held:
        def __init__(self) -> None:
            self.itself = self

    gc.disable()
    try:
        held = weakref.ref(Held())
        assert held() is not None
        Scrubber([], Counters()).scrub()
        assert held() is None
    finally:
        gc.enable()


def test_the_last_scrub_neither_raises_nor_hangs() -> None:
    """A faulted device cannot keep a process alive that has to end."""
    hung = threading.Event()

    class Faulted(Device):
        def scrub(self) -> None:
            raise RuntimeError("device-side assert")

    class Hanging(Device):
        def scrub(self) -> None:
            hung.wait()

    for device in (Faulted(), Hanging()):
        Scrubber([device], Counters()).scrub_for_the_last_time()
    hung.set()
