"""Jobs read by their forms: the same as in full, whatever the bytes and whatever was read before."""

from __future__ import annotations

import hashlib
import json
from copy import copy
from random import Random
from typing import TypeVar

from fuzz.target import VECTORS, MutateBytes, Target
from fuzz.targets import sealed_objects
from mrgc.errors import FormatError
from mrgc.wire import strict_cbor
from mrgc.wire.job_forms import JobForm, JobForms
from mrgc.wire.sealed import parse_job, parse_job_aad

#: As long as AWS KMS makes it, so that no field that differs lies among the bytes that forms are looked up by.
_EDK = hashlib.sha512(b"edk").digest() * 3
_FIELDS = {
    "tenant": "acme",
    "key_arn": "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab",
    "edk": _EDK,
    "context": {"mrgc:use": "job", "mrgc:tenant": "acme"},
    "model": "all-minilm-l6-v2",
    "type": "application/json",
    "items": 1,
    "created": 1_795_000_000,
    "expires": 1_795_003_600,
    "floor": 0,
}
_PLACE_BYTES = 8  # of a mutation that keeps every length

#: What a job comes to: its own fields, those of its form, and its parts. None: refused.
Reading = tuple[object, ...] | None
_Rememberer = TypeVar("_Rememberer", JobForms, JobForm)


def _job(number: int, **changes: object) -> bytes:
    """Lay out a job; nothing here opens, so commitment and ciphertext are any bytes."""
    own = {"job": bytes([number]) * 16, "salt": bytes([number]) * 32, "commit": bytes([number]) * 32}
    header = strict_cbor.encode(_FIELDS | own | changes)
    body_bytes = 1 + number
    lengths = len(header).to_bytes(2, "big") + body_bytes.to_bytes(4, "big")
    return b"mrgc\x01\x01" + lengths + header + bytes(body_bytes + 16)


#: What the forms have read before the input comes: two jobs of the usual form, so that it has its template.
_KNOWN = (_job(0), _job(1))


def _read_known() -> JobForms:
    forms = JobForms()
    for known in _KNOWN:
        forms.parse_job(known)
    return forms


#: Made once and copied for each input: reading two jobs in full takes longer than most inputs do.
_FORMS = _read_known()


def _forms_of_known() -> JobForms:
    """Return a copy that remembers by itself: what is learnt of one input, the next must not find."""
    forms = _copied(_FORMS)
    for key, form in forms._forms.items():
        forms._forms[key] = _copied(form)
    return forms


def _copied(owner: _Rememberer) -> _Rememberer:
    twin = copy(owner)
    for name, value in vars(owner).items():
        if isinstance(value, dict):
            setattr(twin, name, copy(value))
    return twin


def check(data: bytes) -> bool:
    """Read one input by forms that know the usual one, and in full."""
    forms = _forms_of_known()
    expected = _in_full(data)
    assert _by_form(forms, data) == expected
    # By now an accepted input is among the forms.
    assert _by_form(forms, data) == expected
    assert _aad_by_form(forms, data) == _aad_in_full(data)
    if expected is not None:
        aad = data[: 12 + int.from_bytes(data[6:8], "big")]
        assert _aad_by_form(forms, aad) == _aad_in_full(aad) is not None
    assert _by_form(forms, _KNOWN[1]) == _KNOWN_IN_FULL
    return expected is not None


def _in_full(data: bytes) -> Reading:
    try:
        job = parse_job(data)
    except FormatError:
        return None
    header = job.header
    own = (header.job, header.salt, header.commit, header.created, header.expires, job.body_bytes)
    return *own, _shared(header.to_map()), job.aad, bytes(job.ciphertext), job.request


def _by_form(forms: JobForms, data: bytes) -> Reading:
    try:
        job = forms.parse_job(data)
    except FormatError:
        return None
    cut = job.cut
    # As admission reads it: the whole header, made of the form's and the job's own.
    assert cut.header() == parse_job(data).header
    own = (cut.job, cut.salt, cut.commit, cut.created, cut.expires, cut.body_bytes)
    return *own, _shared(cut.form.first.to_map()), job.aad, bytes(job.ciphertext), job.request


def _aad_in_full(aad: bytes) -> Reading:
    try:
        header = parse_job_aad(aad)
    except FormatError:
        return None
    return header.job, header.salt, header.commit, header.created, header.expires, _shared(header.to_map())


def _aad_by_form(forms: JobForms, aad: bytes) -> Reading:
    try:
        cut = forms.parse_aad(aad)
    except FormatError:
        return None
    return cut.job, cut.salt, cut.commit, cut.created, cut.expires, _shared(cut.form.first.to_map())


def _shared(fields: dict[str, object]) -> dict[str, object]:
    """Return what the jobs of one form have in common."""
    own = {"job", "salt", "commit", "items", "created", "expires"}
    return {name: value for name, value in fields.items() if name not in own}


_KNOWN_IN_FULL = _in_full(_KNOWN[1])
assert _KNOWN_IN_FULL is not None


def seeds() -> dict[str, bytes]:
    """Jobs of the usual form, of neighbouring forms and of none, one AAD, and the vectors of jobs."""
    found = {
        f"vector {vector['name']}": bytes.fromhex(vector["object"])
        for vector in json.loads((VECTORS / "sealed" / "vectors.json").read_text())
        if vector["kind"] == "job"
    }
    aad = _job(2)[: -(1 + 2 + 16)]
    found |= {
        "of the usual form": _job(2),
        "other times": _job(2, created=1_795_000_007, expires=1_796_000_000),
        "longer numbers": _job(2, items=16_384, created=0, expires=1),
        "items of the same length": _job(2, items=23),
        "no items": _job(2, items=0),
        "expires before it is created": _job(2, expires=1_794_000_000),
        "another data key": _job(2, edk=_EDK[::-1]),
        "another tail of the data key": _job(2, edk=_EDK[:-1] + b"\x00"),
        "another model of the same length": _job(2, model="all-minilm-l6-v3"),
        "optional fields": _job(2, receipt=1, policy=bytes(32), ext={"a": 1}),
        "an unknown field": _job(2, zone="x"),
        "aad": aad,
        "aad of no body": aad[:8] + bytes(4) + aad[12:],
        "aad of too long a body": aad[:8] + b"\xff" * 4 + aad[12:],
        "one byte too few": _job(2)[:-1],
        "one byte too many": _job(2) + b"\x00",
    }
    return {name: data for name, data in found.items() if len(data) <= TARGET.max_bytes}


def mutate(data: bytes, random: Random, mutate_bytes: MutateBytes) -> bytes:
    """Change a few bytes in their place, which leaves a job to its form, or the header as a sealed object's."""
    if not data or random.randrange(2):
        return sealed_objects.mutate(data, random, mutate_bytes)
    start = random.randrange(len(data))
    piece = data[start : start + random.randint(1, _PLACE_BYTES)]
    changed = (mutate_bytes(piece) + piece)[: len(piece)]
    return data[:start] + changed + data[start + len(piece) :]


TARGET = Target(check, seeds, mutate)
