"""Jobs read and results written by their forms: the same as in full, whatever the bytes."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mrgc.errors import AuthenticationError, FormatError, MrgcError, TooLargeError
from mrgc.wire import job_forms, result_forms, sealed
from mrgc.wire.aad_template import read_uint
from mrgc.wire.enclave_protocol import SealRequest
from mrgc.wire.headers import SAFETENSORS_TYPE
from mrgc.wire.job_forms import MAX_CUTS, MAX_TIMES, JobCut, JobForms, open_formed
from mrgc.wire.result_forms import ResultForms
from mrgc.wire.sealed import PREFIX, JobDraft, ResultDraft, SealedResult
from mrgc.wire.strict_cbor import encode
from tests.vectors.sealed import make

DATA_KEY = make.DATA_KEY
#: As long as AWS KMS makes it, so that no field that differs lies among the bytes of the lookup.
EDK = hashlib.sha512(b"edk").digest() * 3
FIELDS = make.job_fields() | {"edk": EDK}


def job_of(plaintext: bytes = b"x", **changes: Any) -> bytes:
    """Seal a job of the usual form, or of another."""
    return sealed.seal_job(JobDraft(**(FIELDS | {"job": os.urandom(16)} | changes)), plaintext, data_key=DATA_KEY)


def outcome(forms: JobForms | None, data: bytes) -> Any:
    """Return what a job comes to, read in full or by forms: its own fields, or the class of its refusal."""
    try:
        if forms is None:
            job = sealed.parse_job(data)
            header = job.header
            own = (header.job, header.salt, header.commit, header.created, header.expires, job.body_bytes)
            return own, job.aad, bytes(job.ciphertext), job.request, header.edk, header.context, header.floor
        formed, whole = forms.parse_job(data), forms.parse_sealed(data)
        assert (whole.header, whole.aad, whole.request) == (sealed.parse_job(data).header, formed.aad, formed.request)
        assert whole.ciphertext == formed.ciphertext
    except FormatError as error:
        return type(error)
    cut, first = formed.cut, formed.cut.form.first
    own = (cut.job, cut.salt, cut.commit, cut.created, cut.expires, cut.body_bytes)
    return own, formed.aad, bytes(formed.ciphertext), formed.request, first.edk, first.context, first.floor


def aad_outcome(forms: JobForms | None, aad: bytes) -> Any:
    """Return what an AAD comes to."""
    try:
        if forms is None:
            header = sealed.parse_job_aad(aad)
            return header.job, header.salt, header.commit, header.created, header.expires, header.edk
        cut = forms.parse_aad(aad)
    except FormatError as error:
        return type(error)
    return cut.job, cut.salt, cut.commit, cut.created, cut.expires, cut.form.first.edk


def seen(*jobs: bytes) -> JobForms:
    """Return forms that know a few jobs, the usual one twice."""
    forms = JobForms()
    for job in (job_of(), job_of(), *jobs):
        forms.parse_job(job)
    return forms


def test_jobs_of_one_form_are_read_in_full_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second and later jobs of a form cost no CBOR; another form does, once."""
    counted: list[bytes] = []

    def counting(data: Any, **_: Any) -> sealed.SealedJob:
        counted.append(bytes(data))
        return sealed.parse_job(data)

    monkeypatch.setattr(job_forms, "parse_job", counting)
    forms = JobForms()
    for number in range(20):
        forms.parse_job(job_of(bytes(1 + number), items=1 + number, created=make.NOW + number))
    assert len(counted) == 1
    other = hashlib.sha512(b"other").digest() * 3
    for _ in range(5):
        forms.parse_job(job_of(edk=other))
    assert len(counted) == 2


def test_an_aad_that_opening_has_read_is_not_read_again_for_sealing() -> None:
    """What opening found in a job's AAD is what sealing gets."""
    forms = seen()
    opened = forms.parse_job(job_of(b"another"))
    assert forms.parse_aad(memoryview(bytearray(opened.aad))) is opened.cut


@given(
    items=st.integers(1, 16_384),
    created=st.integers(0, 2**40 - 1_209_601),
    life=st.integers(1, 1_209_600),
    plaintext=st.binary(min_size=1, max_size=300),
)
def test_a_legal_job_reads_the_same_by_its_form(items: int, created: int, life: int, plaintext: bytes) -> None:
    """Whatever its own fields, a job gives what a full parse gives, and opens."""
    data = job_of(plaintext, items=items, created=created, expires=created + life)
    forms = seen()
    assert outcome(forms, data) == outcome(None, data)
    assert open_formed(forms.parse_job(data), data_key=DATA_KEY) == plaintext
    aad = sealed.parse_job(data).aad
    assert aad_outcome(forms, aad) == aad_outcome(None, aad)


@given(data=st.data())
def test_a_mutant_is_judged_the_same_by_its_form(data: st.DataObject) -> None:
    """Whichever bytes of a job change, its form and a full parse accept or refuse it alike."""
    original = job_of(b"plaintext")
    forms = seen()
    mutant = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        mutant[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    mutated = bytes(mutant)[: data.draw(st.sampled_from([len(original), len(original) - 1, 400, 50]))]
    mutated += data.draw(st.sampled_from([b"", b"", b"", b"\x00"]))
    assert outcome(forms, mutated) == outcome(None, mutated)
    aad = mutated[: len(sealed.parse_job(original).aad)]
    assert aad_outcome(forms, aad) == aad_outcome(None, aad)


def reheader(data: bytes, name: bytes, old: int, new: bytes) -> bytes:
    """Replace the encoded number of a header field by other bytes of the same length."""
    at = data.index(name) + len(name)
    assert data[at : at + len(encode(old))] == encode(old)
    return data[:at] + new + data[at + len(new) :]


@pytest.mark.parametrize(
    ("name", "value", "encoded"),
    [
        ("items", 5, b"\x00"),  # zero
        ("items", 5, b"\x18"),  # the head of a longer number
        ("items", 5, b"\x25"),  # negative
        ("items", 5, b"\x40"),  # empty bytes
        ("items", 5, b"\xf6"),  # null
        ("items", 30, b"\x18\x17"),  # 23 in two bytes
        ("items", 30, b"\x41\x1e"),  # one byte of bytes
        ("items", 300, b"\x19\x00\xff"),  # 255 in three bytes
        ("items", 300, b"\x19\x40\x01"),  # 16,385
        ("created", make.NOW, b"\x1a\x00\x00\xff\xff"),  # 65,535 in five bytes
        ("created", make.NOW, b"\x3a\x6a\xfd\x36\xc0"),  # negative
        ("created", make.NOW, b"\xfa\x6a\xfd\x36\xc0"),  # a float
        ("created", make.NOW, struct.pack(">BI", 0x1A, make.NOW + 3600)),  # not before expires
        ("expires", make.NOW + 3600, struct.pack(">BI", 0x1A, make.NOW + 1_209_601)),  # too late
        ("expires", make.NOW + 3600, struct.pack(">BI", 0x1A, make.NOW)),
    ],
)
def test_a_number_in_a_form_follows_every_rule(name: str, value: int, encoded: bytes) -> None:
    """Numbers that are not canonical, of another type or out of range are refused as in full."""
    number: dict[str, Any] = {name: value}
    good = job_of(**number)
    forms = seen(good, job_of(**number))
    assert outcome(forms, good) == outcome(None, good)
    assert len(forms._forms) <= 2
    bad = reheader(good, name.encode(), value, encoded)
    assert outcome(None, bad) is FormatError
    assert outcome(forms, bad) is FormatError
    assert aad_outcome(forms, bad[: len(good) - 17]) is FormatError


@pytest.mark.parametrize(
    "change",
    [
        lambda job: job[:8] + struct.pack(">I", 2) + job[12:],
        lambda job: job[:8] + struct.pack(">I", 0) + job[12:],
        lambda job: job[:8] + struct.pack(">I", 33_554_433) + job[12:],
        lambda job: job + b"\x00",
        lambda job: job[:-1],
        lambda job: job[:5] + b"\x02" + job[6:],
        lambda job: b"MRGC" + job[4:],
    ],
)
def test_a_layout_that_lies_is_refused_by_its_form(change: Any) -> None:
    """Lengths, kind and magic are judged as in full."""
    bad = change(job_of())
    assert outcome(None, bad) is FormatError
    assert outcome(seen(), bad) is FormatError


@pytest.mark.parametrize("count", [0, 33_554_433])
def test_an_aad_that_lies_about_its_body_is_refused_by_its_form(count: int) -> None:
    """A body's length is within its limits although nothing follows an AAD."""
    aad = sealed.parse_job(job_of()).aad
    bad = aad[:8] + struct.pack(">I", count) + aad[12:]
    assert aad_outcome(None, bad) is FormatError
    assert aad_outcome(seen(), bad) is FormatError


def test_jobs_of_another_length_have_a_form_of_their_own() -> None:
    """Numbers that take another byte make another form beside the first, and both are remembered."""
    forms = seen(job_of(items=30), job_of(items=300))
    assert len(forms._forms) == 3


VECTORS = json.loads((Path(make.__file__).with_name("vectors.json")).read_text())


@pytest.mark.parametrize("vector", [each for each in VECTORS if each["kind"] == "job"], ids=lambda each: each["name"])
def test_every_vector_is_judged_the_same_by_forms(vector: dict[str, Any]) -> None:
    """Each vector ends alike, with forms that know nothing and with forms that know its neighbours."""
    data = bytes.fromhex(vector["object"])
    accepted = [bytes.fromhex(each["object"]) for each in VECTORS if (each["kind"], each["expect"]) == ("job", "ok")]
    assert outcome(JobForms(), data) == outcome(seen(*accepted, *accepted), data) == outcome(None, data)


def test_a_form_that_the_lookup_cannot_tell_apart_is_read_in_full() -> None:
    """Two forms with equal first bytes and lengths do not disturb one another."""
    forms = JobForms()
    one: dict[str, Any] = {"floor": 0}
    other: dict[str, Any] = {"floor": 1}
    for _ in range(3):
        for fields in (one, other):
            data = job_of(**fields)
            assert outcome(forms, data) == outcome(None, data)


def test_a_reader_with_a_cap_of_its_own_refuses_what_is_over_it() -> None:
    """A body over the cap is too large, whether its form is known or not, and one at the cap is read."""
    forms = JobForms(max_body_bytes=3)
    for _ in range(2):
        assert forms.parse_sealed(job_of(b"two")).body_bytes == 3
        with pytest.raises(TooLargeError):
            forms.parse_sealed(job_of(b"four"))


def test_the_forms_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many forms pass by, a bounded number and a bounded number of bytes is kept, and all are read rightly."""
    jobs = [job_of(edk=hashlib.sha512(bytes([number])).digest() * 3) for number in range(60)]
    aad_bytes = len(sealed.parse_job(jobs[0]).aad)
    for bound, value, kept in (("MAX_FORMS", 50, 50), ("MAX_FORMS_BYTES", 40 * aad_bytes, 40)):
        with monkeypatch.context() as patched:
            patched.setattr(job_forms, bound, value)
            forms = JobForms()
            sizes = []
            for data in jobs:
                assert outcome(forms, data) == outcome(None, data)
                sizes.append(len(forms._forms))
        assert max(sizes) == kept
        assert sizes[-1] == len(jobs) - kept


def test_what_is_remembered_of_jobs_is_bounded() -> None:
    """However many times and jobs pass by, a bounded number is kept, and all are read rightly."""
    usual = seen()
    for number in range(MAX_TIMES + 10):
        usual.parse_job(job_of(created=make.NOW + number, expires=make.NOW + number + 1))
    assert all(len(form._times) <= MAX_TIMES for form in usual._forms.values())
    for number in range(MAX_CUTS + 10):
        data = job_of(number.to_bytes(2, "big"))
        aad = usual.parse_job(data).aad
        assert aad_outcome(usual, aad) == aad_outcome(None, aad)
    assert len(usual._cuts) <= MAX_CUTS


@given(value=st.integers(0, 2**64 - 1))
@example(value=23)
@example(value=24)
@example(value=255)
@example(value=256)
@example(value=65_535)
@example(value=65_536)
def test_a_number_is_read_as_it_is_written(value: int) -> None:
    """A canonical uint of any length comes back."""
    assert read_uint(encode(value)) == value


# --- results ---------------------------------------------------------------------------------------------------------

CREATED = make.NOW + 5


def answer(body: bytes = b"x", **changes: Any) -> SealRequest:
    """Return a usual result that is to be sealed, or another."""
    claims: dict[str, Any] = {"status": "ok", "model": "all-minilm-l6-v2" + make.DIGEST, "type": "application/json"}
    fields = {"request": hashlib.sha256(body).digest(), "ticket": b"", "aad": b"", "body": body} | claims | changes
    return SealRequest(**fields)


def answered(forms: JobForms, **changes: Any) -> JobCut:
    """Return a job as sealing gets it."""
    return forms.parse_job(job_of(**changes)).cut


def in_full(result: SealRequest, job: JobCut, created: int) -> SealedResult:
    """Seal a result without any form."""
    shared = {name: getattr(job.form.first, name) for name in ("tenant", "key_arn", "edk", "context")}
    claims = {name: getattr(result, name) for name in ("request", "model", "type", "status")}
    full = ResultDraft(**shared, **claims, job=job.job, tier=0, created=created)
    return sealed.parse_result(sealed.seal_result(full, result.body, data_key=DATA_KEY))


@given(
    results=st.lists(
        st.tuples(
            st.binary(min_size=1, max_size=300),
            st.sampled_from(["ok", "partial"]),
            st.sampled_from(["application/json", "application/vnd.safetensors"]),
            st.sampled_from([0, 200, 60_000, CREATED, CREATED + 1, 1 << 32, (1 << 40) - 1]),
            st.sampled_from(["acme", "beta"]),
        ),
        min_size=2,
        max_size=8,
    )
)
def test_results_of_known_forms_are_ordinary_results(results: list[tuple[bytes, str, str, int, str]]) -> None:
    """Each opens under its own job and request, and its header is what sealing in full writes."""
    forms, jobs = ResultForms(tier=0), JobForms()
    for body, status, type_, created, tenant in results:
        own = {"edk": hashlib.sha512(tenant.encode()).digest() * 3}
        job, result = answered(jobs, **own), answer(body, status=status, type=type_)
        made = sealed.parse_result(forms.seal(result, job, created=created, data_key=DATA_KEY))
        assert sealed.open_result(made, data_key=DATA_KEY) == body
        full = in_full(result, job, created)
        assert made.header == full.header._replace(salt=made.header.salt, commit=made.header.commit)
        assert len(made.aad) == len(full.aad)
        assert (made.header.job, made.header.request, made.header.created) == (job.job, result.request, created)


def test_every_result_has_a_salt_of_its_own() -> None:
    """A form shares a header, never a salt, a commitment or a key."""
    forms, job = ResultForms(tier=0), answered(JobForms())
    made = [
        sealed.parse_result(forms.seal(answer(b"same"), job, created=CREATED, data_key=DATA_KEY)) for _ in range(20)
    ]
    assert len({each.header.salt for each in made}) == len({each.header.commit for each in made}) == 20
    assert len({bytes(each.ciphertext) for each in made}) == 20


@pytest.mark.parametrize("first", [True, False])
def test_a_form_refuses_what_sealing_in_full_refuses(first: bool) -> None:
    """Bodies, data keys, claims and times are judged alike for the first result of a form and for later ones."""
    forms, job = ResultForms(tier=0), answered(JobForms())
    own: dict[str, Any] = {"created": (1 << 40) - 1, "data_key": DATA_KEY}
    if not first:
        forms.seal(answer(), job, **own)
    with pytest.raises(FormatError):
        forms.seal(answer(b""), job, **own)
    with pytest.raises(AuthenticationError):
        forms.seal(answer(), job, **own | {"data_key": bytes(31)})
    for time_s in (-1, 1 << 40, 1 << 64):
        with pytest.raises(FormatError):
            forms.seal(answer(), job, **own | {"created": time_s})
    wrong: list[dict[str, Any]] = [{"model": "no digest"}, {"status": "done"}]
    for claims in (*wrong, {"status": "failed", "type": SAFETENSORS_TYPE}):
        with pytest.raises(MrgcError):
            forms.seal(answer(**claims), job, **own)
    assert sealed.parse_result(forms.seal(answer(), job, **own))


def test_result_forms_outlive_a_batch_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many forms pass by, a bounded number is remembered; a known one is not sealed in full again."""
    monkeypatch.setattr(result_forms, "MAX_FORMS", 10)
    forms, jobs = ResultForms(tier=0), JobForms()
    own: dict[str, Any] = {"created": CREATED, "data_key": DATA_KEY}
    many = [answered(jobs, edk=hashlib.sha512(bytes([number])).digest() * 3) for number in range(25)]
    sizes = []
    for job in many:
        assert sealed.parse_result(forms.seal(answer(), job, **own)).header.edk == job.form.first.edk
        sizes.append(len(forms._templates))
    assert (max(sizes), sizes[-1]) == (10, 5)
    with monkeypatch.context() as patched:
        patched.setattr(result_forms, "seal_result", None)
        forms.seal(answer(b"again"), many[-1], **own)


def test_an_aad_is_the_prefix_and_the_header() -> None:
    """What a template cuts is what sealing lays out: twelve bytes and H."""
    data = job_of(b"four")
    magic, version, kind, header_bytes, body_bytes = PREFIX.unpack_from(data)
    assert (magic, version, kind, body_bytes) == (b"mrgc", 1, 1, 4)
    assert JobForms().parse_job(data).aad == data[: PREFIX.size + header_bytes]
