from __future__ import annotations

import time
from typing import Any

import pytest

from enclave import batches
from mrgc.errors import AuthenticationError, MrgcError
from mrgc.wire import frames
from mrgc.wire.enclave_protocol import MAX_JOBS, Opened, open_batch_request
from mrgc.wire.sealed import open_result, parse_job, parse_result
from tests.enclave.stack import MODEL, Caller, Kms, RunningEnclave, seal_request


def test_a_job_opens_and_its_result_comes_back_for_the_tenant_alone(caller: Caller, kms: Kms) -> None:
    """A sealed job opens to its payload, and the sealed result opens under the tenant's own data key only."""
    key, other = kms.data_key(), kms.data_key("globex")
    job = key.job(b'{"inputs": ["canary"]}')
    opened = caller.open_one(job)
    assert bytes(opened.plaintext) == b'{"inputs": ["canary"]}'
    (sealed,) = caller.seal([seal_request(opened, job, b'{"embeddings": [[1.0]]}')])
    assert isinstance(sealed, memoryview)
    result = parse_result(sealed)
    assert bytes(open_result(result, data_key=key.plaintext)) == b'{"embeddings": [[1.0]]}'
    with pytest.raises(AuthenticationError):
        open_result(result, data_key=other.plaintext)


def test_a_result_header_repeats_the_job_and_takes_nothing_from_the_parent_but_its_claims(
    caller: Caller, kms: Kms
) -> None:
    """Statement 11: identity comes from the AAD, tier and time from the enclave, the rest from the parent."""
    job = kms.data_key().job()
    (sealed,) = caller.seal([seal_request(caller.open_one(job), job)])
    assert isinstance(sealed, memoryview)
    header, asked = parse_result(sealed).header, parse_job(job)
    same = ("tenant", "job", "key_arn", "edk", "context")
    assert [getattr(header, name) for name in same] == [getattr(asked.header, name) for name in same]
    assert header.request == asked.request
    assert (header.tier, header.model, header.status) == (0, MODEL, "ok")
    assert header.salt != asked.header.salt
    assert abs(header.created - time.time()) < 5


def test_every_job_has_its_own_outcome_in_order(caller: Caller, kms: Kms) -> None:
    """Statement 10: bad jobs between good ones get their codes, and the good ones their plaintexts, in order."""
    key, now = kms.data_key(), int(time.time())
    flipped = bytearray(key.job())
    flipped[-1] ^= 1
    batch = [
        key.job(b"first"),
        b"not a job",
        key.job(floor=1),
        key.job(created=now - 7_200, expires=now - 3_600),
        key.job(created=now + 3_600, expires=now + 7_200),
        key.job(receipt=1),
        key.job(floor=1, hosts=[bytes(32)]),
        bytes(flipped),
        key.job(b"last"),
    ]
    outcomes = caller.open(batch)
    codes = [o.code if isinstance(o, MrgcError) else bytes(o.plaintext).decode() for o in outcomes]
    refused = ["bad_format", "trust_floor", "expired", "expired", "unsupported", "trust_floor", "auth"]
    assert codes == ["first", *refused, "last"]


def test_public_refusals_cost_no_kms_call(caller: Caller, kms: Kms) -> None:
    """Whatever public bytes decide is decided before KMS is asked."""
    key, now, before = kms.data_key(), int(time.time()), kms.decrypts()
    caller.open([key.job(floor=3), key.job(created=now - 9, expires=now - 1), b"mrgc", key.job(receipt=1)])
    assert kms.decrypts() == before


@pytest.mark.parametrize("part", ["prefix", "header", "body", "tag"])
def test_a_flipped_bit_anywhere_never_opens(caller: Caller, kms: Kms, part: str) -> None:
    """Statement 2: a flipped bit is bad_format where form breaks, otherwise a code that reveals no cause."""
    key = kms.data_key()
    good = key.job(b"x" * 40)
    aad_bytes = len(parse_job(good).aad)
    where = {
        "prefix": range(12),
        "header": range(12, aad_bytes),
        "body": range(aad_bytes, len(good) - 16),
        "tag": range(len(good) - 16, len(good)),
    }[part]
    mutants = []
    for position in where:
        mutant = bytearray(good)
        mutant[position] ^= 1
        mutants.append(bytes(mutant))
    codes = set(caller.open_codes(mutants))
    # A flip in the ARN names another key (key_access), in a time another time: all public, none opens.
    allowed = {"header": {"bad_format", "auth", "key_access", "expired", "trust_floor"}, "prefix": {"bad_format"}}
    assert codes <= allowed.get(part, {"auth"})
    assert caller.open_codes([good]) == ["ok"]


def test_edk_context_commit_and_tag_share_one_code(caller: Caller, kms: Kms) -> None:
    """Statement 10: nothing tells a wrong wrapped key from a wrong context, commitment or tag."""
    key = kms.data_key()
    altered_context = {**key.context, "note": "other"}
    good = key.job()
    commit = parse_job(good).header.commit
    forged_commit = good.replace(commit, bytes(32))
    batch = [
        key.job(edk=key.edk[:-1] + bytes([key.edk[-1] ^ 1])),
        key.job(context=altered_context),
        forged_commit,
        good[:-1] + bytes([good[-1] ^ 1]),
        kms.data_key().job(edk=key.edk, key_arn=key.key_arn),
    ]
    assert caller.open_codes(batch) == ["auth"] * 5
    # One shape as well: the code, and nothing beside it.
    assert caller.ask(open_batch_request(9, batch)).header["outcomes"] == [{"code": "auth"}] * 5


def test_a_data_key_of_another_use_or_tenant_is_refused(caller: Caller, kms: Kms) -> None:
    """The context must say use = job and name the job's tenant, in the header and towards KMS."""
    arn = kms.create_key()
    payload = kms.data_key(key_arn=arn, context={"mrgc:tenant": "acme", "mrgc:use": "payload"})
    foreign = kms.data_key(key_arn=arn, context={"mrgc:tenant": "globex", "mrgc:use": "job"})
    honest = {"mrgc:tenant": "acme", "mrgc:use": "job"}
    raw = kms.data_key(key_arn=arn).job()
    assert caller.open_codes([payload.job(context=honest), foreign.job(context=honest)]) == ["auth", "auth"]
    assert caller.open_codes([raw.replace(b"cjob", b"cjog")]) == ["bad_format"]
    # The key's policy admits its own tenant only: another tenant's name under this key is KMS's refusal.
    assert caller.open_codes([foreign.job(tenant="globex", context=foreign.context)]) == ["key_access"]


def test_a_key_that_demands_another_image_is_refused(caller: Caller, kms: Kms) -> None:
    """A policy that names another PCR0 gives key_access, and batch mates are served."""
    stranger = kms.data_key(key_arn=kms.create_key(pcr0=b"\x99" * 48))
    assert caller.open_codes([stranger.job(), kms.data_key().job()]) == ["key_access", "ok"]


def test_a_region_outside_the_image_is_refused(caller: Caller, kms: Kms) -> None:
    """Only endpoints of the measured image are dialled."""
    key = kms.data_key()
    assert caller.open_codes([key.job(key_arn=key.key_arn.replace("eu-west-1", "mars-west-1"))]) == ["key_access"]


def test_one_kms_call_serves_a_key_for_opening_and_sealing(caller: Caller, kms: Kms) -> None:
    """A warm cache costs no KMS call."""
    key, before = kms.data_key(), kms.decrypts()
    jobs = [key.job() for _ in range(20)]
    opened = [o for o in caller.open(jobs) if isinstance(o, Opened)]
    caller.seal([seal_request(o, job) for o, job in zip(opened, jobs, strict=True)])
    assert len(opened) == 20
    assert kms.decrypts() == before + 1
    metrics = caller.metrics()
    assert metrics["jobs_opened"] == metrics["results_sealed"] == 20
    assert (metrics["kms_calls"], metrics["key_cache_entries"], metrics["key_cache_hits"]) == (1, 1, 1)


def test_sealing_needs_a_ticket_of_this_job(caller: Caller, kms: Kms) -> None:
    """Statement 11: a ticket is bound to the request and the whole header, to nothing of the parent's choice."""
    key = kms.data_key()
    job, other = key.job(), key.job()
    opened, opened_other = caller.open_one(job), caller.open_one(other)
    zero = bytes(40)
    late = (0).to_bytes(8, "big") + opened.ticket[8:]
    outcomes = caller.seal(
        [
            seal_request(opened, job, ticket=zero),
            seal_request(opened, job, ticket=late),
            seal_request(opened, job, ticket=opened_other.ticket),
            seal_request(opened, other),
            seal_request(opened, job, request=opened_other.request),
            seal_request(opened, job),
        ]
    )
    assert [o.code if isinstance(o, MrgcError) else "ok" for o in outcomes] == ["ticket"] * 5 + ["ok"]


def test_a_ticket_of_another_boot_is_refused(caller: Caller, kms: Kms, reboot: RunningEnclave) -> None:
    """Statement 11: after a restart nothing is sealed for jobs that only the previous boot has opened."""
    job = kms.data_key().job()
    opened = caller.open_one(job)
    with reboot.serving() as second:
        (refused,) = second.seal([seal_request(opened, job)])
        assert isinstance(refused, MrgcError)
        assert refused.code == "ticket"
        (sealed,) = second.seal([seal_request(second.open_one(job), job)])
        assert isinstance(sealed, memoryview)


@pytest.mark.parametrize(
    "claims",
    [
        {"model": "all-minilm-l6-v2"},
        {"model": "UPPER@sha256:" + "0" * 64},
        {"status": "done"},
        {"type": "text/html"},
        {"type": "application/octet-stream"},
        {"status": "failed", "type": "application/vnd.safetensors"},
        {"body": b""},
    ],
)
def test_illegal_claims_about_a_result_are_refused(caller: Caller, kms: Kms, claims: dict[str, Any]) -> None:
    """Model, status, type and body follow the rules of result headers, each failure for itself."""
    job = kms.data_key().job()
    opened = caller.open_one(job)
    outcomes = caller.seal([seal_request(opened, job, **claims), seal_request(opened, job)])
    assert [o.code if isinstance(o, MrgcError) else "ok" for o in outcomes] == ["bad_format", "ok"]


def test_a_whole_batch_of_the_legal_size_is_served(caller: Caller, kms: Kms) -> None:
    """1,024 jobs fit one frame; one more breaks the request, not the connection."""
    key = kms.data_key()
    jobs = [key.job() for _ in range(MAX_JOBS)]
    assert caller.open_codes(jobs) == ["ok"] * MAX_JOBS
    answer = caller.ask(open_batch_request(8, [*jobs, jobs[0]]))
    assert answer.header == {"code": "bad_format"}
    assert caller.health().hello


def test_a_job_whose_answer_would_not_fit_is_too_large(
    caller: Caller, kms: Kms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer never outgrows its frame: whoever comes too late in the batch gets too_large, the others are served."""
    key = kms.data_key()
    jobs = [key.job(b"x" * 400), key.job(b"x" * 500), key.job(b"x" * 100)]
    opened = [o for o in caller.open(jobs) if isinstance(o, Opened)]
    monkeypatch.setattr(batches, "MAX_ANSWER_BYTES", batches.MAX_OUTCOMES_BYTES + 3 * batches.MAX_OUTCOME_BYTES + 1_000)
    assert caller.open_codes(jobs) == ["ok", "ok", "ok"]
    assert caller.open_codes([*jobs[1:], jobs[0], jobs[2]])[:3] == ["ok", "ok", "too_large"]
    requests = [seal_request(o, job, b"y" * 300) for o, job in zip(opened, jobs, strict=True)]
    sealed = caller.seal(requests)
    assert [o.code if isinstance(o, MrgcError) else "ok" for o in sealed] == ["ok", "too_large", "too_large"]


def test_the_longest_body_opens_and_comes_back_sealed(caller: Caller, kms: Kms) -> None:
    """A body of 32 MiB, the format's limit, fits request and answer; its result may be as long."""
    key = kms.data_key()
    body = bytes(33_554_432)
    job = key.job(body)
    opened = caller.open_one(job)
    assert len(opened.plaintext) == len(body)
    assert caller.open_codes([job, key.job()]) == ["ok", "ok"]
    (sealed,) = caller.seal([seal_request(opened, job, body)])
    assert isinstance(sealed, memoryview)
    assert len(sealed) < frames.MAX_FRAME_BYTES
