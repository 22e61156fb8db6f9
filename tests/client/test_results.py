"""What a reader accepts as the result of its job, and everything that it refuses (docs/spec.md §4)."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrgc.errors import KeyBusyError, ResultRefused
from mrgc.results import OpenedResult, hint_name, object_name, open_result_of, read_hint
from mrgc.submitted import SubmittedJob
from mrgc.wire.sealed import JobDraft, SealedJob, parse_job, seal_job, seal_result
from tests.client.tenants import MANIFEST, OK_BODY, draft_of

KEY = bytes(range(32))
ARN = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"


def make_job(**changes: Any) -> SealedJob:
    """Seal a job of acme under KEY."""
    draft = JobDraft(
        tenant="acme",
        job=os.urandom(16),
        key_arn=ARN,
        edk=b"wrapped",
        context={"mrgc:tenant": "acme", "mrgc:use": "job"},
        model="all-minilm-l6-v2",
        type="application/json",
        items=1,
        created=1_795_000_000,
        expires=1_795_003_600,
    )
    return parse_job(seal_job(draft._replace(**changes), b'{"inputs":["x"]}', data_key=KEY))


JOB = make_job()
RESULT = seal_result(draft_of(JOB), OK_BODY, data_key=KEY)


def read(data: bytes, *, key: bytes = KEY, key_arn: str = ARN) -> OpenedResult:
    """Read `data` as the result of JOB."""
    return open_result_of(SubmittedJob.of(JOB), data, key_arn=key_arn, data_key_for=lambda _: key)


def test_the_authentic_result_is_read() -> None:
    """The one object that passes: sealed under the job's data key, with the job's own header."""
    result = read(RESULT)
    assert (result.body, result.model, result.type, result.status) == (OK_BODY, MANIFEST, "application/json", "ok")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"tenant": "globex", "context": {"mrgc:tenant": "globex", "mrgc:use": "job"}}, "tenant"),
        ({"job": bytes(16)}, "job"),
        ({"key_arn": ARN[:-1] + "c"}, "key_arn"),
        ({"edk": b"wrapped again"}, "edk"),
        ({"context": {"mrgc:tenant": "acme", "mrgc:use": "job", "team": "red"}}, "context"),
        ({"request": bytes(32)}, "request"),
    ],
)
def test_each_field_of_the_comparison_refuses_alone(changes: dict[str, Any], field: str) -> None:
    """A result that authenticates, but differs from the job in one compared field, is refused naming that field."""
    forged = seal_result(draft_of(JOB)._replace(**changes), OK_BODY, data_key=KEY)
    with pytest.raises(ResultRefused, match=f"differs from the job in {field}$"):
        read(forged)


def test_the_results_of_two_jobs_cannot_be_swapped() -> None:
    """Statement 2: the authentic result of one job is refused for another of the same tenant, key and epoch."""
    with pytest.raises(ResultRefused, match="in job"):
        read(seal_result(draft_of(make_job()), OK_BODY, data_key=KEY))


def test_the_key_arn_comes_from_the_configuration() -> None:
    """Under another configured key, the same object is refused."""
    with pytest.raises(ResultRefused, match="key_arn"):
        read(RESULT, key_arn=ARN[:-1] + "c")


def test_a_result_under_another_data_key_does_not_authenticate() -> None:
    """A peer without the data key cannot make a result, and the refusal says no more than that."""
    with pytest.raises(ResultRefused, match="does not authenticate"):
        read(seal_result(draft_of(JOB), OK_BODY, data_key=bytes(32)))


def test_the_data_key_is_not_asked_for_before_the_comparison() -> None:
    """A foreign object costs no KMS call."""

    def must_not_be_asked(_: bytes) -> bytes:
        raise AssertionError

    foreign = seal_result(draft_of(make_job()), OK_BODY, data_key=KEY)
    with pytest.raises(ResultRefused):
        open_result_of(SubmittedJob.of(JOB), foreign, key_arn=ARN, data_key_for=must_not_be_asked)


def test_a_busy_kms_is_not_a_refused_result() -> None:
    """When the key cannot be had now, that is what the reader hears."""

    def busy(_: bytes) -> bytes:
        raise KeyBusyError("kms is busy")

    with pytest.raises(KeyBusyError):
        open_result_of(SubmittedJob.of(JOB), RESULT, key_arn=ARN, data_key_for=busy)


@given(index=st.integers(0, len(RESULT) - 1), bit=st.integers(0, 7))
def test_any_flipped_bit_is_refused(index: int, bit: int) -> None:
    """Statement 2: no bit of prefix, header, body or tag can change."""
    damaged = bytearray(RESULT)
    damaged[index] ^= 1 << bit
    with pytest.raises(ResultRefused):
        read(bytes(damaged))


@given(end=st.integers(0, len(RESULT) - 1))
def test_any_cut_is_refused(end: int) -> None:
    """No shorter object passes."""
    with pytest.raises(ResultRefused):
        read(RESULT[:end])


@given(tail=st.binary(min_size=1, max_size=64))
def test_any_tail_is_refused(tail: bytes) -> None:
    """A result without a receipt ends at its tag."""
    with pytest.raises(ResultRefused):
        read(RESULT + tail)


def test_a_sealed_job_is_not_a_result() -> None:
    """The kind of object is demanded: the job itself, put in its result's place, is refused."""
    job = seal_job(JobDraft(**{name: getattr(JOB.header, name) for name in JobDraft._fields}), b"{}", data_key=KEY)
    with pytest.raises(ResultRefused, match="kind"):
        read(job)


def test_names_are_those_of_the_specification() -> None:
    """Result and hint lie under tenant, job and request, in hex."""
    job = SubmittedJob.of(JOB)
    stem = f"acme/{JOB.header.job.hex()}/{JOB.request.hex()}"
    assert (object_name(job), hint_name(job)) == (f"{stem}.mrgc", f"{stem}.refused")


@given(data=st.binary(max_size=80))
def test_a_hint_is_a_code_or_nothing(data: bytes) -> None:
    """Whatever was left there, what is shown is a short word of lower-case ASCII."""
    hint = read_hint(data)
    assert hint is None or (hint.isascii() and hint.replace("_", "a").isalnum() and len(hint) <= 64)


def test_a_hint_reads() -> None:
    """A code, with or without a line's end, is a hint."""
    assert (read_hint(b"key_access"), read_hint(b"key_access\n")) == ("key_access", "key_access")


@pytest.mark.parametrize(
    "body", [b"nope", b"[" * 100_000, b'{"a":NaN}', b'{"a":1,"a":2}', b"\xff", b"[1" + b",1" * 9_000_000]
)
def test_a_body_that_is_not_json_is_refused_when_parsed(body: bytes) -> None:
    """An authentic result may still hold what no honest engine writes; parsing it stays bounded."""
    result = OpenedResult(SubmittedJob.of(JOB), "ok", MANIFEST, "application/json", 0, 0, body)
    with pytest.raises(ResultRefused, match="not json"):
        result.json()
