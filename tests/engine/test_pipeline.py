"""The three stages as threads: overlap, bounds, drain, and the end of a process that cannot go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from mrgc.errors import ModelError, MrgcError
from tests.engine.host import MODEL, Host
from tests.waiting import until
from worker.engine.counters import Counters
from worker.engine.enclave_client import EnclaveClient
from worker.engine.jobs import Batch
from worker.engine.opening import Opener
from worker.engine.pipeline import Pipeline
from worker.engine.scrubbing import Scrubber
from worker.engine.sealing import Sealer
from worker.engine_protocol import HEALTHY, WAITING, Served
from worker.models.base import Ids, Model, Outputs, Tokens
from worker.models.registry import Registry

CAP = 1 << 20
BUDGET = 256

Outcomes = list[Served | MrgcError]


class Gated:
    """The tiny model behind a gate, so that a test decides when a forward pass ends."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.name, self.digest = model.name, model.digest
        self.dimensions, self.max_tokens = model.dimensions, model.max_tokens
        self.vocabulary, self.answer = model.vocabulary, model.answer
        self.gate = threading.Event()
        self.batches: list[list[int]] = []
        self.tokenised = 0
        self.fault: Exception | None = None

    def tokenise(self, inputs: Sequence[object]) -> list[Tokens | ModelError]:
        self.tokenised += len(inputs)
        return self._model.tokenise(inputs)

    def forward(self, rows: Sequence[Ids]) -> Outputs:
        self.batches.append([len(row) for row in rows])
        assert self.gate.wait(30)
        if self.fault is not None:
            raise self.fault
        return self._model.forward(rows)


class Running:
    """A pipeline with its model and what it answered."""

    def __init__(self, host: Host, served: Registry) -> None:
        self.host = host
        self.model = Gated(served.find(MODEL))
        self.answers: dict[int, Outcomes] = {}
        self.failures = threading.Event()
        opener = Opener(self._client(), Registry([self.model]), max_body_bytes=CAP)
        sealer = Sealer(self._client(), max_body_bytes=CAP)
        scrubber = Scrubber([self.model], Counters())
        self.pipeline = Pipeline(opener, sealer, scrubber, budget_tokens=BUDGET, on_failure=self.failures.set)
        self.pipeline.start()

    def _client(self) -> EnclaveClient:
        return EnclaveClient(self.host.enclave, self.host.token_file)

    def batch(self, number: int, jobs: Sequence[bytes], *, exclusive: bool = False) -> Batch:
        """Make a batch whose answer is kept under `number`."""

        def keep(outcomes: Outcomes) -> None:
            assert number not in self.answers
            self.answers[number] = outcomes

        return Batch([memoryview(job) for job in jobs], keep, exclusive=exclusive)


@pytest.fixture
def running(host: Host, served: Registry) -> Iterator[Running]:
    """A pipeline beside an enclave that has just booted; its gate is open at the end."""
    host.boot()
    made = Running(host, served)
    yield made
    made.model.gate.set()
    if made.failures.is_set():
        # In a real engine the process has ended; here the stages that still live would go on tending for ever.
        made.pipeline._finished.put(None)
    made.pipeline.drain()


def test_every_batch_is_answered_once_and_drain_waits_for_the_last(running: Running) -> None:
    """Nothing that was submitted is lost when the engine stops."""
    running.model.gate.set()
    jobs = {number: [running.host.job([f"text {number} {job}"]) for job in range(3)] for number in range(8)}
    for number, sealed in jobs.items():
        running.pipeline.submit(running.batch(number, sealed))
    running.pipeline.drain()
    assert running.answers.keys() == jobs.keys()
    for number, outcomes in running.answers.items():
        for job, outcome in zip(jobs[number], outcomes, strict=True):
            assert running.host.result(job, outcome)[0].status == "ok"
    counted = running.pipeline.health().counters
    assert (counted["batches"], counted["jobs"], counted["jobs_ok"], counted["texts"]) == (8, 24, 24, 24)


def test_rows_of_several_batches_share_a_forward_pass(running: Running) -> None:
    """What arrived while the device was busy goes together, whoever sent it."""
    running.pipeline.submit(running.batch(0, [running.host.job(["first"])]))
    until(lambda: running.model.batches, within_s=20, what="the device is busy")
    for number in range(1, 4):
        running.pipeline.submit(running.batch(number, [running.host.job(["text"])]))
    until(lambda: running.model.tokenised == 4, within_s=20, what="all are opened")
    running.model.gate.set()
    running.pipeline.drain()
    assert running.model.batches[0] == running.model.batches[0][:1]
    assert sum(map(len, running.model.batches)) == 4
    assert len(running.model.batches) < 4
    assert len(running.answers) == 4


def test_rows_of_an_exclusive_batch_share_no_forward_pass_with_others(running: Running) -> None:
    """They go with rows of their own tenant, whichever batch those came in, and with nobody else's."""
    running.pipeline.submit(running.batch(0, [running.host.job(["first"])]))
    until(lambda: running.model.batches, within_s=20, what="the device is busy")
    for number, exclusive in enumerate([False, True, True, False], start=1):
        running.pipeline.submit(running.batch(number, [running.host.job(["text"])], exclusive=exclusive))
    until(lambda: running.model.tokenised == 5, within_s=20, what="all are opened")
    running.model.gate.set()
    running.pipeline.drain()
    assert [len(batch) for batch in running.model.batches] == [1, 1, 2, 1]
    assert len(running.answers) == 5


def test_the_next_batch_is_opened_while_the_device_is_busy(running: Running) -> None:
    """Stages overlap: opening does not wait for the forward pass."""
    running.pipeline.submit(running.batch(0, [running.host.job(["first"])]))
    until(lambda: running.model.batches, within_s=20, what="the device is busy")
    with running.host.caller() as caller:
        before = caller.metrics()["jobs_opened"]
        running.pipeline.submit(running.batch(1, [running.host.job(["second"])]))
        until(lambda: caller.metrics()["jobs_opened"] == before + 1, within_s=20, what="the second job is opened")
    assert not running.answers


def test_a_full_pipeline_makes_its_caller_wait(running: Running) -> None:
    """Back-pressure: a stalled device stops the intake's socket instead of filling memory."""
    wide = [running.host.job(["the " * 100] * 3) for _ in range(2)]
    submitted: list[int] = []

    def submit_all() -> None:
        for number in range(12):
            running.pipeline.submit(running.batch(number, wide))
            submitted.append(number)

    feeder = threading.Thread(target=submit_all)
    feeder.start()
    until(lambda: len(submitted) >= 3, within_s=20, what="the pipeline fills")
    feeder.join(0.5)
    assert feeder.is_alive()
    held = len(submitted)
    assert held <= 6
    running.model.gate.set()
    feeder.join(60)
    running.pipeline.drain()
    assert len(running.answers) == 12


def test_a_fault_of_the_device_ends_the_process(running: Running) -> None:
    """Whatever a forward pass raises, the engine gives up its jobs together with itself."""
    running.model.fault = RuntimeError("device-side assert")
    running.model.gate.set()
    running.pipeline.submit(running.batch(0, [running.host.job(["x"])]))
    assert running.failures.wait(20)
    assert running.answers == {}


def test_a_batch_without_rows_skips_the_device(running: Running) -> None:
    """Jobs that failed on opening are answered while the device is busy with others."""
    running.pipeline.submit(running.batch(0, [running.host.job(["x"], items=2), b"garbage"]))
    until(lambda: running.answers, within_s=20, what="an answer")
    assert running.model.batches == []
    assert [type(outcome).__name__ for outcome in running.answers[0]] == ["Served", "FormatError"]


def test_health_follows_the_enclave(running: Running) -> None:
    """An idle engine notices within a second that its enclave went away, and that it is back."""
    until(lambda: running.pipeline.health().status == HEALTHY, within_s=20, what="healthy")
    running.host.shut_down()
    until(lambda: running.pipeline.health().status == WAITING, within_s=20, what="waiting")
    assert running.pipeline.health().reason
    boot = running.host.boot()
    until(lambda: running.pipeline.health().status == HEALTHY, within_s=20, what="healthy again")
    assert running.pipeline.boot() == boot


def test_embeddings_do_not_depend_on_the_batch_they_were_in(running: Running, served: Registry) -> None:
    """Forty jobs of other texts around it leave a job's bits as they are."""
    model = served.find(MODEL)
    tokens = [each for each in model.tokenise(["the text"]) if isinstance(each, Tokens)]
    alone = np.asarray(model.forward([tokens[0].ids]))
    running.model.gate.set()
    jobs = [running.host.job(["the text"] if place % 7 == 3 else ["other " * place]) for place in range(40)]
    running.pipeline.submit(running.batch(0, jobs))
    running.pipeline.drain()
    for place in range(3, 40, 7):
        embedding = running.host.embeddings(jobs[place], running.answers[0][place])
        assert embedding.tobytes() == np.asarray(alone).tobytes()
