"""The client against a real broker, a real KMS process and a real store; the service's part is sealed by the test."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra import redis_server
from mrgc.client import Client
from mrgc.client_parts import Clock
from mrgc.client_settings import ClientSettings
from mrgc.errors import ConfigError, FormatError, QueueUnavailable, ResultMissing, ResultRefused, TooLargeError
from mrgc.job_queue import SEND_JOBS
from mrgc.payloads import JobOptions
from mrgc.waiting import State
from mrgc.wire import strict_cbor
from mrgc.wire.headers import CBOR_TYPE, SAFETENSORS_TYPE
from mrgc.wire.sealed import SealedJob, open_job, parse_job
from tests.client.tenants import MANIFEST, MODEL, OK_BODY, Tenant, draft_of

OPTIONS = JobOptions(MODEL)


def sent_job(client: Client, tenant: Tenant) -> SealedJob:
    """Submit one job and take it from the queue as the service would."""
    client.submit(["hello"])
    return tenant.peer.jobs()[-1]


def job_ids(tenant: Tenant) -> list[str]:
    """The jobs in the queue, in order."""
    return [job.header.job.hex() for job in tenant.peer.jobs()]


def last_submitted(client: Client, tenant: Tenant) -> Any:
    """The record of the last job in the queue."""
    return client.find(tenant.peer.jobs()[-1].header.job.hex())


def test_texts_arrive_sealed_in_order_and_open_with_the_wrapped_key(client: Client, tenant: Tenant) -> None:
    """Each message holds one sealed job of at most items_per_job texts, which its own wrapped key opens."""
    submitted = client.submit(["a", "b", "c"], options=JobOptions(MODEL, 60, truncate=True), items_per_job=2)
    jobs = tenant.peer.jobs()
    assert [tenant.peer.opened(job) for job in jobs] == [
        {"inputs": ["a", "b"], "parameters": {"truncate": True}},
        {"inputs": ["c"], "parameters": {"truncate": True}},
    ]
    assert [job.request for job in submitted] == [job.request for job in jobs]
    header = jobs[0].header
    assert (header.tenant, header.key_arn, header.model, header.items) == ("acme", tenant.key_arn, MODEL, 2)
    assert header.context == {"mrgc:tenant": "acme", "mrgc:use": "job"}
    assert (header.expires - header.created, header.floor) == (60, 0)
    assert (header.result, header.hosts, header.receipt, header.policy, header.ext) == (None,) * 5


def test_token_ids_and_labels_arrive_as_the_specification_has_them(client: Client, tenant: Tenant) -> None:
    """docs/spec.md §3: CBOR, byte strings of little-endian ids, labels as texts."""
    client.submit([[101, 7, 102], [70_000]], options=JobOptions(MODEL, labels=["a file", "a number"]))
    (job,) = tenant.peer.jobs()
    assert (job.header.type, job.header.items) == (CBOR_TYPE, 2)
    payload = strict_cbor.decode(open_job(job, data_key=tenant.peer.data_key(job.header.edk)))
    assert payload["parameters"] == {"ids": "u32", "labels": ["a file", "a number"]}
    assert [list(struct.unpack(f"<{len(ids) // 4}I", ids)) for ids in payload["inputs"]] == [[101, 7, 102], [70_000]]


def test_scores_of_a_result_are_read_with_their_labels(client: Client, tenant: Tenant) -> None:
    """From an authentic body; one of another form, or of a job that failed, is refused by name."""
    for body, changes in (
        (b'{"labels": ["yes", "no"], "scores": [[0.25, 0.75]], "errors": []}', {}),
        (b'{"labels": ["yes", "no"], "scores": 1}', {}),
        (b'{"errors": [{"code": "bad_payload"}]}', {"status": "failed"}),
    ):
        tenant.peer.answer(sent_job(client, tenant), body, **changes)
    good, odd, failed = (client.open(client.fetch(job)) for job in map(client.find, job_ids(tenant)))
    assert good.answers().best() == [("no", 0.75)]
    with pytest.raises(ResultRefused, match="authentic, but result has a member that is no list"):
        odd.answers()
    with pytest.raises(ResultRefused, match="failed with bad_payload"):
        failed.answers()


def test_no_text_is_readable_in_the_queue_or_in_the_state_folder(client: Client, tenant: Tenant) -> None:
    """Statement 12: a canary text appears in no message and in no file that the client writes."""
    client.submit(["canary-91a7"])
    client.close()
    stored = [value for fields in tenant.peer.messages() for value in fields.values()]
    stored += [path.read_bytes() for path in tenant.folder.rglob("*") if path.is_file()]
    assert len(stored) > 1
    assert not any(b"canary-91a7" in data for data in stored)


def test_a_thousand_jobs_cost_one_data_key_and_their_results_one_more_call(client: Client, tenant: Tenant) -> None:
    """KMS is called twice in an epoch: once to seal, once to open."""
    submitted = list(client.submit_many([["text"]] * 1000))
    assert (len(submitted), client.kms_calls) == (1000, 1)
    for job in tenant.peer.jobs()[:3]:
        tenant.peer.answer(job)
    assert {outcome.state for outcome in client.wait(submitted[:3], timeout_s=20)} == {State.OK}
    assert client.kms_calls == 2


def test_jobs_are_sent_as_they_are_made_not_all_at_the_end(client: Client, tenant: Tenant) -> None:
    """A batch goes out when it is full, before the next text is asked for."""
    seen = []

    def texts() -> Any:
        for index in range(SEND_JOBS + 1):
            seen.append(len(tenant.peer.messages()) if index % SEND_JOBS == 0 else -1)
            yield [str(index)]

    assert len(list(client.submit_many(texts()))) == SEND_JOBS + 1
    assert (seen[0], seen[SEND_JOBS]) == (0, SEND_JOBS)


def test_a_job_is_on_record_although_the_broker_never_confirmed_it(tenant: Tenant, tmp_path: Path) -> None:
    """When the broker is gone, sending says so, and what may have been sent can still be opened later."""
    gone = f"unix://{tmp_path}/absent.sock"
    with Client.from_env(tenant.env(MRGC_QUEUE_URL=gone)) as client:
        sealed = client.seal(["hello"], OPTIONS)
        with pytest.raises(QueueUnavailable, match=r"absent\.sock"):
            list(client.send([sealed]))
        job = parse_job(sealed)
        assert client.find(job.header.job.hex()).request == job.request


def test_a_broker_that_refuses_the_jobs_is_named(client: Client, tenant: Tenant) -> None:
    """An answer that is an error is no confirmation, and its text quotes no message."""
    with tenant.peer.redis() as broker:
        broker.set("q:acme", "not a stream")
    with pytest.raises(QueueUnavailable, match=r"did not take the jobs: ResponseError$"):
        client.submit(["hello"])


def test_a_job_sent_again_after_a_lost_reply_is_the_same_job(client: Client, tenant: Tenant) -> None:
    """Sending one sealed job twice leaves two messages, one record and one result name."""
    sealed = client.seal(["hello"], OPTIONS)
    first, again = [*client.send([sealed]), *client.send([sealed])]
    assert first == again
    assert [job.request for job in tenant.peer.jobs()] == [first.request] * 2


def test_a_broker_that_was_restarted_is_reached_again(tenant: Tenant, tmp_path: Path) -> None:
    """A connection that died between two submissions is made again, without an error."""
    server = redis_server.start(tmp_path / "redis")
    with Client.from_env(tenant.env(MRGC_QUEUE_URL=server.url())) as client:
        client.submit(["before"])
        server.kill()
        server = redis_server.start(tmp_path / "redis")
        try:
            client.submit(["after"])
            assert len(replace(tenant, server=server).peer.messages()) == 2
        finally:
            server.stop()


@pytest.mark.parametrize("texts", [[], ["x"] * 16_385])
def test_a_job_without_texts_or_with_too_many_is_not_sealed(client: Client, texts: list[str]) -> None:
    """The item count of the specification holds before anything is sent."""
    with pytest.raises(FormatError):
        client.seal(texts, OPTIONS)


def test_a_text_without_a_unicode_form_is_refused(client: Client) -> None:
    """A lone surrogate cannot be sealed as UTF-8."""
    with pytest.raises(FormatError, match="surrogate"):
        client.seal(["\ud800"], OPTIONS)


def test_a_long_job_needs_a_bucket(client: Client, tenant: Tenant) -> None:
    """Over the queue's cap, a job whose results lie in a directory is refused before anything is sent."""
    with pytest.raises(TooLargeError, match="s3://"):
        client.submit(["x" * 524_288])
    assert tenant.peer.messages() == []


def test_a_result_opens_to_its_body(client: Client, tenant: Tenant) -> None:
    """Fetch returns what is stored, open what was sealed, with what the header says."""
    job = sent_job(client, tenant)
    with pytest.raises(ResultMissing):
        client.fetch(client.find(job.header.job.hex()))
    stored = tenant.peer.answer(job).read_bytes()
    submitted = client.find(job.header.job.hex())
    assert client.fetch(submitted) == stored
    result = client.open(stored)
    assert (result.job, result.body, result.model, result.status, result.tier) == (
        submitted,
        OK_BODY,
        MANIFEST,
        "ok",
        0,
    )
    assert result.json()["embeddings"] == [[0.25, -1.5]]


@pytest.mark.parametrize(
    ("body", "changes", "expected"),
    [
        (OK_BODY, {}, (State.OK, "")),
        (OK_BODY, {"status": "partial"}, (State.PARTIAL, "")),
        (b"\0" * 64, {"type": SAFETENSORS_TYPE}, (State.OK, "")),
        (b'{"errors":[{"code":"unknown_model"}]}', {"status": "failed"}, (State.FAILED, "unknown_model")),
        (b'{"errors":[{"code":"\\u001b[31m"}]}', {"status": "failed"}, (State.FAILED, "unknown")),
        (b"not json", {"status": "failed"}, (State.FAILED, "unknown")),
    ],
)
def test_a_wait_ends_with_the_authentic_status(
    client: Client, tenant: Tenant, body: bytes, changes: dict[str, str], expected: tuple[State, str]
) -> None:
    """The outcome is the sealed status; a failure's code is shown only if it is a code."""
    tenant.peer.answer(sent_job(client, tenant), body, **changes)
    (outcome,) = client.wait([last_submitted(client, tenant)], timeout_s=20)
    assert (outcome.state, outcome.code) == expected
    assert outcome.result is not None
    assert outcome.result.body == body


def test_a_hint_ends_the_wait_and_is_named_unauthenticated(client: Client, tenant: Tenant) -> None:
    """A refused job without a result ends as refused, with the hint's code and no result."""
    job = sent_job(client, tenant)
    tenant.peer.put(job, b"key_access\n", suffix="refused")
    (outcome,) = client.wait([last_submitted(client, tenant)], timeout_s=20)
    assert (outcome.state, outcome.code, outcome.result) == (State.REFUSED, "key_access", None)


def test_a_real_result_wins_over_a_hint(client: Client, tenant: Tenant) -> None:
    """A hint beside an authentic result is not even mentioned."""
    job = sent_job(client, tenant)
    tenant.peer.put(job, b"auth", suffix="refused")
    tenant.peer.answer(job)
    (outcome,) = client.wait([last_submitted(client, tenant)], timeout_s=20)
    assert outcome.state is State.OK


def test_a_result_that_comes_just_after_the_look_wins_over_the_hint(client: Client, tenant: Tenant) -> None:
    """Between the look for the result and the look for the hint, the service may have stored both."""
    job = sent_job(client, tenant)
    store = client._parts.store
    read = store.read

    def read_while_the_service_writes(names: Sequence[str], *, max_bytes: int) -> list[bytes | None]:
        if any(name.endswith(".refused") for name in names):
            tenant.peer.put(job, b"auth", suffix="refused")
            tenant.peer.answer(job)
        return read(names, max_bytes=max_bytes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "read", read_while_the_service_writes)
        (outcome,) = client.wait([last_submitted(client, tenant)], timeout_s=20)
    assert outcome.state is State.OK


@pytest.mark.parametrize("hint", [b"", b"auth; rm -rf /", b"\x1b[31mred", b"a" * 65, "ünïcode".encode()])
def test_a_hint_that_is_not_a_code_is_no_hint(client: Client, tenant: Tenant, hint: bytes) -> None:
    """Whatever a stranger leaves in place of a hint, the wait goes on to its own end."""
    tenant.peer.put(sent_job(client, tenant), hint, suffix="refused")
    (outcome,) = client.wait([last_submitted(client, tenant)], timeout_s=0)
    assert (outcome.state, outcome.code) == (State.TIMED_OUT, "timeout")


def test_a_wait_ends_at_the_jobs_expiry(tenant: Tenant) -> None:
    """Without a timeout, a job without a result ends when it expires, and not before."""
    now_s = time.time()
    rests: list[float] = []

    def rest(seconds: float) -> None:
        nonlocal now_s
        rests.append(seconds)
        now_s += seconds

    settings = ClientSettings.from_env(tenant.env())
    clock = Clock(now=lambda: now_s, rest=rest)
    with Client(settings, clock=clock) as client:
        (job,) = client.submit(["hello"], options=JobOptions(MODEL, 60))
    # Without a queue there are no notices to listen to in real time.
    with Client(replace(settings, queue_url=""), clock=clock) as client:
        (outcome,) = client.wait([job])
    assert (outcome.state, outcome.code) == (State.TIMED_OUT, "expired")
    assert job.expires <= now_s < job.expires + 1
    assert max(rests) <= 2


def test_results_are_yielded_as_they_come_and_each_job_once(client: Client, tenant: Tenant) -> None:
    """Of two jobs, one named twice, the answered one ends at once and the other at the deadline."""
    first, second = client.submit(["a", "b"], items_per_job=1)
    tenant.peer.answer(tenant.peer.jobs()[1])
    outcomes = list(client.wait([first, second, first], timeout_s=0.3))
    assert [(outcome.job, outcome.state) for outcome in outcomes] == [
        (second, State.OK),
        (first, State.TIMED_OUT),
    ]


def test_anothers_result_in_ones_place_is_refused_and_mates_are_not(
    client: Client, tenant: Tenant, other_tenant: Tenant
) -> None:
    """Statement 2: results swapped between jobs or tenants, and rubbish, are refused one by one."""
    submitted = client.submit(["a", "b", "c", "d", "e"], items_per_job=1)
    jobs = tenant.peer.jobs()
    with Client.from_env(other_tenant.env()) as other:
        theirs = sent_job(other, other_tenant)
    tenant.peer.put(jobs[0], tenant.peer.seal(jobs[1]))
    tenant.peer.put(jobs[1], other_tenant.peer.seal(theirs))
    tenant.peer.put(jobs[2], b"")
    tenant.peer.put(jobs[3], bytes(34_000_000))
    tenant.peer.answer(jobs[4])
    outcomes = {outcome.job.job: outcome for outcome in client.wait(submitted, timeout_s=20)}
    states = [outcomes[job.job].state for job in submitted]
    assert states == [State.NOT_AUTHENTIC] * 4 + [State.OK]


def test_the_record_of_another_tenant_is_not_ones_own(client: Client, tenant: Tenant, other_tenant: Tenant) -> None:
    """Even in one state folder, a tenant finds and opens only its own jobs."""
    job = sent_job(client, tenant)
    stored = tenant.peer.seal(job)
    with Client.from_env(other_tenant.env(MRGC_STATE=tenant.env()["MRGC_STATE"])) as other:
        with pytest.raises(ConfigError, match="no record"):
            other.find(job.header.job.hex())
        with pytest.raises(ResultRefused, match="no record"):
            other.open(stored)


def test_the_key_arn_is_the_configured_one_not_the_recorded_one(client: Client, tenant: Tenant) -> None:
    """A tenant whose configuration names another key accepts no result under the old one."""
    stored = tenant.peer.seal(sent_job(client, tenant))
    another = tenant.kms.create_key(tenant.name)
    with (
        Client.from_env(tenant.env(MRGC_KEY_ARN=another)) as changed,
        pytest.raises(ResultRefused, match="key_arn"),
    ):
        changed.open(stored)


def test_a_result_below_the_jobs_floor_is_refused(client: Client, tenant: Tenant) -> None:
    """Statement 5: a job that demanded tier 1 has no acceptable result of tier 0."""
    client.submit(["hello"], options=JobOptions(MODEL, floor=1))
    job = tenant.peer.jobs()[-1]
    with pytest.raises(ResultRefused, match="floor"):
        client.open(tenant.peer.seal(job))
    assert client.open(tenant.peer.seal(job, tier=1)).tier == 1


def test_close_zeroes_every_data_key(client: Client, tenant: Tenant) -> None:
    """After close no key is in the buffers that held them; the client can be used again."""
    job = sent_job(client, tenant)
    keys = client._parts.keys
    held = [keys.for_sealing().data_key, keys.for_opening(job.header.edk)]
    assert all(any(key) for key in held)
    client.close()
    assert held == [bytearray(32)] * 2
    assert client.open(tenant.peer.seal(job)).status == "ok"


def test_no_secret_shows_in_a_repr(client: Client, tenant: Tenant) -> None:
    """Settings, epochs and results print neither credentials, keys nor bodies."""
    job = sent_job(client, tenant)
    result = client.open(tenant.peer.seal(job))
    epoch = client._parts.keys.for_sealing()
    shown = repr((client.settings, epoch, result, draft_of(job)))
    secret = tenant.kms.access("acme").secret_key or ""
    assert not any(text in shown for text in (secret, repr(epoch.data_key), repr(result.body), tenant.server.url()))
