"""Open, forward, seal, one after the other in this process, against the product's own enclave."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import safetensors.numpy

from mrgc.errors import EnclaveBusy, EnclaveUnreachable, MrgcError, TicketError
from mrgc.wire.enclave_protocol import Opened, SealRequest
from mrgc.wire.headers import SAFETENSORS_TYPE
from mrgc.wire.sealed import parse_job
from mrgc.wire.strict_cbor import Buffer
from tests.engine.host import MODEL, Host
from tests.forged_jobs import rewritten
from worker.engine import opening, sealing
from worker.engine.enclave_client import EnclaveClient
from worker.engine.forwarding import forward
from worker.engine.jobs import Batch, Job, Row
from worker.engine.opening import Opener
from worker.engine.sealing import Sealer
from worker.engine_protocol import Served
from worker.models.base import Embeddings, Model, Tokens
from worker.models.registry import Registry

CAP = 1 << 20


class Watched(EnclaveClient):
    """A client that remembers the buffers that held plaintext."""

    def __init__(self, host: Host) -> None:
        super().__init__(host.enclave, host.token_file)
        self.plaintexts: list[Buffer] = []
        self.bodies: list[Buffer] = []
        self.opens = 0

    def open_batch(self, jobs: Sequence[Buffer]) -> list[Opened | MrgcError]:
        self.opens += 1
        outcomes = super().open_batch(jobs)
        self.plaintexts += [outcome.plaintext for outcome in outcomes if isinstance(outcome, Opened)]
        return outcomes

    def seal_batch(self, results: Sequence[SealRequest]) -> list[memoryview | MrgcError]:
        self.bodies += [result.body for result in results]
        return super().seal_batch(results)


@pytest.fixture
def client(host: Host) -> Iterator[Watched]:
    """A connection to an enclave that has just booted."""
    host.boot()
    made = Watched(host)
    yield made
    made.close()


@pytest.fixture
def model(served: Registry) -> Model:
    """The model that jobs ask for."""
    return served.find(MODEL)


def open_jobs(
    client: EnclaveClient, served: Registry, jobs: Sequence[bytes], *, cap: int = CAP
) -> tuple[Batch, list[Row]]:
    """First stage."""
    batch = Batch([memoryview(job) for job in jobs], lambda _: None)
    rows = Opener(client, served, max_body_bytes=cap).open(batch)
    return batch, [row for of_model in rows.values() for row in of_model]


def run(client: EnclaveClient, served: Registry, jobs: Sequence[bytes], *, cap: int = CAP) -> list[Served | MrgcError]:
    """All three stages."""
    batch, rows = open_jobs(client, served, jobs, cap=cap)
    if rows:
        assert forward(served.find(MODEL), rows) == [batch]
    return Sealer(client, max_body_bytes=cap).seal(batch)


def expected(model: Model, texts: Sequence[str]) -> Embeddings:
    """What the model computes for texts that are tokenised one by one."""
    tokens = model.tokenise(texts)
    return np.asarray(model.forward([each.ids for each in tokens if isinstance(each, Tokens)]))


def test_a_job_comes_back_as_the_embeddings_of_its_texts(
    host: Host, client: Watched, served: Registry, model: Model
) -> None:
    """From sealed bytes to sealed bytes, the numbers are the model's, to the bit."""
    job = host.job(["parse the file", "", "return a value"])
    (outcome,) = run(client, served, [job])
    header, _ = host.result(job, outcome)
    assert (header.status, header.tier, header.model) == ("ok", 0, f"{MODEL}@sha256:{model.digest}")
    assert (
        host.embeddings(job, outcome).tobytes() == expected(model, ["parse the file", "", "return a value"]).tobytes()
    )


def test_safetensors_on_request(host: Host, client: Watched, served: Registry, model: Model) -> None:
    """The tenant chooses the form of the body."""
    job = host.job(["one", "two"], parameters={"accept": SAFETENSORS_TYPE})
    (outcome,) = run(client, served, [job])
    header, body = host.result(job, outcome)
    assert header.type == SAFETENSORS_TYPE
    assert safetensors.numpy.load(body)["embeddings"].tobytes() == expected(model, ["one", "two"]).tobytes()


def test_every_bad_job_has_an_outcome_of_its_own_and_its_mates_are_served(
    host: Host, client: Watched, served: Registry, model: Model
) -> None:
    """Statement 10: thirteen ways to be wrong between two good jobs, in one batch."""
    forged = bytearray(host.job())
    forged[-20] ^= 1
    failing = {
        "bad_payload": [
            host.job(["x"], items=2),
            host.job(["x"], parameters={"dimensions": 32}),
            host.sealed(b"\xff\xfe"),
            host.sealed(b'{"inputs": ["x"]', items=1),
            host.sealed(b'{"inputs": ["x"]}', type="application/cbor"),
        ],
        "unknown_model": [host.job(model="absent"), host.job(model=f"{MODEL}@sha256:{'00' * 32}")],
        "result_too_large": [host.job(["x"] * 5_000)],
    }
    refused = [
        (bytes(forged), "auth"),
        (b"", "bad_format"),
        (b"mrgc" * 50, "bad_format"),
        (host.job(floor=1), "trust_floor"),
        (host.job(receipt=1), "unsupported"),
        (host.job(created=1_000, expires=2_000), "expired"),
    ]
    failed = [(job, code) for code, jobs in failing.items() for job in jobs]
    good = [host.job(["first"]), host.job(["last"])]
    jobs = [good[0], *(job for job, _ in failed), *(job for job, _ in refused), good[1]]
    outcomes = run(client, served, jobs)
    assert len(outcomes) == len(jobs)
    for (job, code), outcome in zip(failed, outcomes[1:], strict=False):
        assert host.result(job, outcome)[0].status == "failed"
        assert host.codes(job, outcome) == [code]
    for (_, code), outcome in zip(refused, outcomes[1 + len(failed) :], strict=False):
        assert isinstance(outcome, MrgcError)
        assert outcome.code == code
    assert host.embeddings(good[0], outcomes[0]).tobytes() == expected(model, ["first"]).tobytes()
    assert host.embeddings(good[1], outcomes[-1]).tobytes() == expected(model, ["last"]).tobytes()


def test_nothing_of_a_forged_job_reaches_the_model(host: Host, client: Watched, served: Registry) -> None:
    """Statement 2: flipped anywhere, or put together from two jobs, it fails before a tensor is built."""
    job, other = host.job(["secret"]), host.job(["other"])
    header = parse_job(other).header
    aad_bytes = len(parse_job(job).aad)
    flipped = [
        job[:at] + bytes([job[at] ^ 1]) + job[at + 1 :]
        for at in (*range(0, aad_bytes, 7), aad_bytes, len(job) - 17, len(job) - 16, len(job) - 1)
    ]
    swapped = [rewritten(job, **{name: getattr(header, name)}) for name in ("job", "salt", "commit")]
    batch, rows = open_jobs(client, served, [*flipped, *swapped, job[:-20] + other[-20:]])
    assert (rows, client.plaintexts) == ([], [])
    assert all(isinstance(outcome, MrgcError) for outcome in batch.jobs)


def test_a_bad_input_fails_alone(host: Host, client: Watched, served: Registry, model: Model) -> None:
    """Too long, no text, a lone surrogate: each its own code, and the others are served."""
    long = "word " * 500
    job = host.job(["good", long, 7, "\ud800", "also good"])
    (outcome,) = run(client, served, [job])
    header, body = host.result(job, outcome)
    assert header.status == "partial"
    answer = json.loads(body)
    assert answer["errors"] == [
        {"index": 1, "code": "input_too_long"},
        {"index": 2, "code": "input_invalid"},
        {"index": 3, "code": "input_invalid"},
    ]
    good = np.array([answer["embeddings"][0], answer["embeddings"][4]], dtype=np.float32)
    assert good.tobytes() == expected(model, ["good", "also good"]).tobytes()


def test_truncate_serves_what_would_be_too_long(host: Host, client: Watched, served: Registry, model: Model) -> None:
    """The head of the text is embedded when the tenant says so."""
    long = "word " * 500
    job = host.job([long], parameters={"truncate": True})
    (outcome,) = run(client, served, [job])
    assert host.embeddings(job, outcome).tobytes() == expected(model, [long]).tobytes()


def test_a_job_of_which_every_input_failed_is_failed(host: Host, client: Watched, served: Registry) -> None:
    """There is no output to call partial."""
    job = host.job([1, "word " * 500])
    (outcome,) = run(client, served, [job])
    header, body = host.result(job, outcome)
    assert header.status == "failed"
    assert [error["code"] for error in json.loads(body)["errors"]] == ["input_invalid", "input_too_long"]


def test_cbor_payloads_are_served(host: Host, client: Watched, served: Registry, model: Model) -> None:
    """The other form of docs/spec.md §2."""
    job = host.sealed(b"\xa1\x66inputs\x81\x64text", type="application/cbor")
    (outcome,) = run(client, served, [job])
    assert host.embeddings(job, outcome).tobytes() == expected(model, ["text"]).tobytes()


def test_an_answer_that_cannot_fit_is_refused_before_the_forward_pass(
    host: Host, client: Watched, served: Registry
) -> None:
    """No row of such a job reaches the model."""
    batch, rows = open_jobs(client, served, [host.job(["x"] * 100)], cap=100 * 64 * 8 - 1)
    assert rows == []
    (job,) = batch.jobs
    assert isinstance(job, Job)
    assert job.failure == "result_too_large"


def test_an_answer_that_comes_out_too_large_is_a_failed_result(host: Host, client: Watched, served: Registry) -> None:
    """Between the estimate from below and the truth lies a third of the size."""
    job = host.job(["x"] * 100)
    (outcome,) = run(client, served, [job], cap=100 * 64 * 8)
    assert host.codes(job, outcome) == ["result_too_large"]


def test_plaintext_buffers_are_zero_afterwards(host: Host, client: Watched, served: Registry) -> None:
    """Payloads, ids, embeddings and bodies, of jobs that were served and of jobs that failed."""
    batch, rows = open_jobs(client, served, [host.job(["secret"]), host.job(["secret"], items=2)])
    assert len(client.plaintexts) == 2
    assert not any(any(plaintext) for plaintext in client.plaintexts)
    forward(served.find(MODEL), rows)
    Sealer(client, max_body_bytes=CAP).seal(batch)
    assert not any(row.ids.any() for row in rows)
    answers = [job.answer for job in batch.jobs if isinstance(job, Job) and job.answer is not None]
    assert [answer.tensors().arrays["embeddings"].any() for answer in answers] == [False]
    assert len(client.bodies) == 2
    assert not any(any(body) for body in client.bodies)


def test_an_enclave_that_restarts_between_open_and_seal_costs_one_more_open(
    host: Host, client: Watched, served: Registry, model: Model
) -> None:
    """Stale tickets are renewed for all jobs of the batch in one request, and nothing is inferred twice."""
    jobs = [host.job(["one"]), host.job(["two"]), host.job(["x"], items=2)]
    batch, rows = open_jobs(client, served, jobs)
    forward(served.find(MODEL), rows)
    host.boot()
    outcomes = Sealer(client, max_body_bytes=CAP).seal(batch)
    assert host.embeddings(jobs[0], outcomes[0]).tobytes() == expected(model, ["one"]).tobytes()
    assert host.embeddings(jobs[1], outcomes[1]).tobytes() == expected(model, ["two"]).tobytes()
    assert host.codes(jobs[2], outcomes[2]) == ["bad_payload"]
    assert client.opens == 2
    assert not any(any(plaintext) for plaintext in client.plaintexts)


def test_a_job_that_does_not_open_again_goes_back_to_the_queue(
    host: Host, client: Watched, served: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ticket stays stale, and that is the code that the intake gets."""
    batch, rows = open_jobs(client, served, [host.job()])
    forward(served.find(MODEL), rows)
    host.boot()
    monkeypatch.setattr(client, "open_batch", lambda jobs: [EnclaveBusy("no room")] * len(jobs))
    (outcome,) = Sealer(client, max_body_bytes=CAP).seal(batch)
    assert isinstance(outcome, TicketError)


def test_finished_jobs_wait_for_an_enclave_that_is_away(
    host: Host, client: Watched, served: Registry, model: Model
) -> None:
    """The sealer asks again after each pause until the enclave is back."""
    job = host.job(["patience"])
    batch, rows = open_jobs(client, served, [job])
    forward(served.find(MODEL), rows)
    host.shut_down()
    pauses: list[float] = []

    def come_back(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 2:
            host.boot()

    (outcome,) = Sealer(client, max_body_bytes=CAP, sleep=come_back).seal(batch)
    assert host.embeddings(job, outcome).tobytes() == expected(model, ["patience"]).tobytes()
    assert len(pauses) >= 2


def test_an_enclave_that_stays_away_gives_the_jobs_back(host: Host, client: Watched, served: Registry) -> None:
    """After its patience the engine says so, job by job, and zeroes the bodies."""
    batch, rows = open_jobs(client, served, [host.job(), host.job()])
    forward(served.find(MODEL), rows)
    host.shut_down()
    now_s = 0.0

    def pass_time(_: float) -> None:
        nonlocal now_s
        now_s += 1.0

    outcomes = Sealer(client, max_body_bytes=CAP, clock=lambda: now_s, sleep=pass_time).seal(batch)
    assert [type(outcome) for outcome in outcomes] == [EnclaveUnreachable, EnclaveUnreachable]
    assert not any(any(body) for body in client.bodies)


def test_without_an_enclave_nothing_opens_and_every_job_says_so(host: Host, client: Watched, served: Registry) -> None:
    """The opening stage does not wait: no work is lost by trying again later."""
    host.shut_down()
    batch, rows = open_jobs(client, served, [host.job(), b"garbage"])
    assert rows == []
    assert [job.code for job in batch.jobs if isinstance(job, MrgcError)] == ["enclave_unreachable", "bad_format"]


def test_results_beyond_one_answer_go_back_to_the_queue(
    host: Host, client: Watched, served: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which jobs fit is known before the forward pass; a frame never grows over its limit."""
    jobs = [host.job(["x"] * 4) for _ in range(3)]
    monkeypatch.setattr(opening, "MAX_ANSWER_BYTES", 2 * 4 * 64 * 8)
    batch, rows = open_jobs(client, served, jobs)
    assert len(rows) == 8
    assert isinstance(batch.jobs[2], EnclaveBusy)
    forward(served.find(MODEL), rows)
    outcomes = Sealer(client, max_body_bytes=CAP).seal(batch)
    assert [type(outcome) for outcome in outcomes] == [Served, Served, EnclaveBusy]
    monkeypatch.setattr(sealing, "MAX_ANSWER_BYTES", len(outcomes[0].result) + 1)  # type: ignore[union-attr]
    assert [type(outcome) for outcome in run(client, served, jobs[:2])] == [Served, EnclaveBusy]


def test_a_large_batch_is_sealed_in_several_requests(
    host: Host, client: Watched, served: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests to the enclave stay within a frame; the order of outcomes is that of the jobs."""
    jobs = [host.job([f"text {number}"]) for number in range(5)]
    seals: list[int] = []
    seal = client.seal_batch

    def count(results: Sequence[SealRequest]) -> list[memoryview | MrgcError]:
        seals.append(len(results))
        return seal(results)

    monkeypatch.setattr(client, "seal_batch", count)
    monkeypatch.setattr(sealing, "MAX_JOBS", 2)
    outcomes = run(client, served, jobs)
    assert seals == [2, 2, 1]
    for job, outcome in zip(jobs, outcomes, strict=True):
        assert host.result(job, outcome)[0].status == "ok"
