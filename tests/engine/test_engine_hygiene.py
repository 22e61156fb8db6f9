"""What an engine process keeps of a batch once it is idle: no text, no ids, no embedding; its tokenisers likewise."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from infra import process_memory
from tests.engine.host import MODEL, EngineProcess, Host, Intake
from tests.waiting import until
from worker.engine_protocol import Served
from worker.models.base import Model, Tokens
from worker.models.registry import Registry

reads_memory = pytest.mark.skipif(os.geteuid() != 0, reason="only root may read the memory of an undumpable process")
TOKENISERS = 2


@pytest.fixture(scope="module")
def model(served: Registry) -> Model:
    """The model that the engine serves, in this process."""
    return served.find(MODEL)


@pytest.fixture
def pooled(tmp_path: Path, host: Host, models: Path) -> Iterator[EngineProcess]:
    """An engine with tokeniser processes."""
    host.boot()
    settings = {"MRGC_ENCLAVE": str(host.enclave), "MRGC_TOKEN_FILE": str(host.token_file), "MRGC_MODELS": str(models)}
    started = EngineProcess(tmp_path, MRGC_TOKENISER_PROCESSES=str(TOKENISERS), **settings)
    with started.running():
        yield started.listening().healthy()


def traces(model: Model, text: str) -> list[bytes]:
    """What a text becomes: its bytes, stretches of its ids as int32 and int64, its embedding as float32."""
    (tokens,) = model.tokenise([text])
    assert isinstance(tokens, Tokens)
    some = tokens.ids[1:25]
    embedding = np.asarray(model.forward([tokens.ids]))[0]
    return [text.encode(), some.tobytes(), some.astype(np.int64).tobytes(), embedding[:16].tobytes()]


@reads_memory
def test_an_idle_engine_holds_nothing_of_what_it_served(
    calm_engine: EngineProcess, calm_host: Host, model: Model
) -> None:
    """Neither a text nor its ids nor its embedding is anywhere in the process once a scrub has passed."""
    texts = [f"canary {os.urandom(12).hex()} number {place}" for place in range(16)]
    needles = [needle for text in texts[::8] for needle in traces(model, text)]
    with Intake(calm_engine.path) as intake:
        scrubs = intake.health().counters["scrubs"]
        json, tensors = calm_host.job(texts), calm_host.job(texts, parameters={"accept": "application/vnd.safetensors"})
        assert all(isinstance(outcome, Served) for outcome in intake.run([json, tensors]))
        until(lambda: intake.health().counters["scrubs"] > scrubs, within_s=10, what="the idle engine scrubs")
    pid = calm_engine.process.pid
    until(lambda: not process_memory.find(pid, needles), within_s=10, what="nothing is left")


@reads_memory
def test_the_search_would_find_what_is_there(model: Model) -> None:
    """A process that holds a text, its ids and its embedding shows all of them."""
    text = f"canary {os.urandom(12).hex()}"
    kept = [bytearray(trace) for trace in traces(model, text)]
    assert len(process_memory.find(os.getpid(), [bytes(each) for each in kept])) == len(kept)


def test_an_engine_that_is_left_alone_scrubs_once(calm_engine: EngineProcess, calm_host: Host) -> None:
    """Each batch is followed by one scrub; an idle engine does not go on scrubbing."""
    with Intake(calm_engine.path) as intake:
        before = intake.health().counters["scrubs"]
        intake.run([calm_host.job()])
        until(lambda: intake.health().counters["scrubs"] > before, within_s=10, what="a scrub")
        intake.run([calm_host.job()])
        until(lambda: intake.health().counters["scrubs"] > before + 1, within_s=10, what="another scrub")
        with pytest.raises(AssertionError, match="one too many"):
            until(lambda: intake.health().counters["scrubs"] > before + 2, within_s=0.5, what="one too many")


def test_a_killed_tokeniser_costs_no_job(pooled: EngineProcess, host: Host, model: Model) -> None:
    """Under load one dies; every job has its own embeddings, and the engine stays."""
    texts = [[f"text {job} {place} " + "of some words " * 20 for place in range(50)] for job in range(12)]
    with Intake(pooled.path) as intake:
        batches: dict[int, list[bytes]] = {}
        for number, inputs in enumerate(texts):
            batch = [host.job(inputs, parameters={"truncate": True})]
            batches[intake.send(batch)] = batch
            if number == 2:
                os.kill(children(pooled.process.pid)[0], signal.SIGKILL)
        answers = intake.receive(dict.fromkeys(batches, 1))
        for (sent, (job,)), inputs in zip(batches.items(), texts, strict=True):
            rows = [each.ids for each in model.tokenise(inputs) if isinstance(each, Tokens)]
            found = host.embeddings(job, answers[sent][0])
            assert found.tobytes() == np.asarray(model.forward(rows)).tobytes()
        assert intake.health().counters["tokeniser_deaths"] == 1
    assert pooled.process.poll() is None


def test_tokenisers_last_until_the_engine_has_drained_and_no_longer(pooled: EngineProcess, host: Host) -> None:
    """A service manager's SIGTERM reaches all processes; the batches taken are answered, and then all are gone."""
    tokenisers = children(pooled.process.pid)
    assert len(tokenisers) == TOKENISERS
    with Intake(pooled.path) as intake:
        sent = intake.send([host.job(["the text"] * 100)])
        with Intake(pooled.path) as other:
            until(lambda: other.health().counters["batches"] == 1, within_s=30, what="the batch is read")
        for pid in (*tokenisers, pooled.process.pid):
            os.kill(pid, signal.SIGTERM)
        (outcome,) = intake.receive({sent: 1})[sent]
        assert isinstance(outcome, Served)
    assert pooled.process.wait(30) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in tokenisers)


def test_tokenisers_do_not_outlive_a_killed_engine(pooled: EngineProcess) -> None:
    """Their end of the connection closes with it."""
    tokenisers = children(pooled.process.pid)
    pooled.process.kill()
    pooled.process.wait(10)
    until(lambda: not any(is_running(pid) for pid in tokenisers), within_s=20, what="the tokenisers end")


def children(pid: int) -> list[int]:
    """Processes that a process started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    """Tell whether a process lives; one that nobody has waited for does not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
