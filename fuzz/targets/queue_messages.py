"""Messages of both brokers (docs/spec.md §5): each is admitted, or refused with a code, and never an error.

The first byte of an input says where it stands: in the field `job`, `ref` or another of a Redis stream's entry, or in
the body of an SQS message.
"""

from __future__ import annotations

import base64
import binascii
import json
from random import Random

from fuzz.target import VECTORS, MutateBytes, Target
from fuzz.targets import sealed_objects, strict_json
from fuzz.values import cbor_mutation
from mrgc.errors import BY_CODE, FormatError
from mrgc.wire import sealed, strict_cbor
from worker.admission import Admission, Capacity, Refused
from worker.registry import parse_registry
from worker.sources.base import BadMessage, ClaimCheck, Lease
from worker.sources.redis_layout import parse_fields
from worker.sources.sqs_layout import encode_body, parse_body

_FIELDS = (b"job", b"ref", b"other")
_SQS = len(_FIELDS)
_TENANT = parse_registry(
    """
    [tenants.acme]
    key_arns = ["arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"]
    models = ["all-minilm-l6-v2"]
    results = "s3://results/acme/"
    claim_buckets = ["claims"]
    """
)["acme"]
_ADMISSION = Admission(results_url="file:///results/", max_body_bytes=1 << 20, max_cost_bytes=1 << 20)
_CAPACITY = Capacity(models={}, max_result_bytes=1 << 20)


def check(data: bytes) -> bool:
    """Read one message, and judge what is in it."""
    place, value = (data[0] % (_SQS + 1), data[1:]) if data else (0, b"")
    body = _read_sqs(value) if place == _SQS else _read_redis(_FIELDS[place], value)
    if isinstance(body, BadMessage):
        assert body.code in BY_CODE
        return False
    return _is_allowed(body) if isinstance(body, ClaimCheck) else _is_admitted(body)


def _read_redis(name: bytes, value: bytes) -> bytes | ClaimCheck | BadMessage:
    body = parse_fields({name: value})
    if isinstance(body, ClaimCheck):
        assert strict_cbor.encode({"url": body.url, "sha256": body.sha256, "bytes": body.bytes}) == value
    if isinstance(body, bytes):
        assert (name, body) == (b"job", value)
    return body


def _read_sqs(value: bytes) -> bytes | ClaimCheck | BadMessage:
    text = value.decode("utf-8", "surrogateescape")
    body = parse_body(text)
    # A letter holds what was received, and a message that is sent anew means the same.
    if isinstance(body, ClaimCheck):
        assert parse_body(encode_body(body)) == body
    else:
        assert encode_body(body) == text
    return body


def _is_allowed(claim: ClaimCheck) -> bool:
    try:
        _ADMISSION.ensure_claim(claim, _TENANT)
    except Refused:
        return False
    assert claim.url.startswith(("s3://claims/", "s3://results/"))
    return True


def _is_admitted(body: bytes) -> bool:
    lease = Lease("acme", "1-1", body, deadline_s=0.0)
    try:
        now_s = sealed.parse_job(body).header.created
    except FormatError:
        now_s = 0
    try:
        # At its own time, so that old vectors are not merely expired.
        job = _ADMISSION.admit(lease, body, tenant=_TENANT, capacity=_CAPACITY, unix_s=now_s)
    except Refused as refused:
        code, url = refused.error.code, refused.object_url
    else:
        code, url = "", job.object_url
    assert not code or code in BY_CODE
    # Also a hint to a refused job lies among its own tenant's results.
    assert code if url is None else url.startswith("s3://results/acme/acme/")
    return not code


def seeds() -> dict[str, bytes]:
    """Jobs and claim checks at both brokers."""
    claim = {"url": "s3://claims/a/b.mrgc", "sha256": bytes(32), "bytes": 600_000}
    job = _sealed_job()
    ref = {**claim, "sha256": bytes(32).hex()}
    return {
        "job": b"\x00" + job,
        "no-job": b"\x00mrgc",
        "claim": b"\x01" + strict_cbor.encode(claim),
        "claim-elsewhere": b"\x01" + strict_cbor.encode(claim | {"url": "s3://another/a"}),
        "claim-not-s3": b"\x01" + strict_cbor.encode(claim | {"url": "http://[::1/claims/"}),
        "claim-of-nothing": b"\x01" + strict_cbor.encode(claim | {"bytes": 0}),
        "claim-with-more": b"\x01" + strict_cbor.encode(claim | {"more": 1}),
        "other-field": b"\x02mrgc",
        "nothing": b"",
        "sqs-job": b"\x03" + base64.b64encode(job),
        "sqs-unused-bits": b"\x03bXJnZZ==",
        "sqs-not-base64": b"\x03bXJn\nYw==",
        "sqs-claim": b"\x03" + json.dumps({"ref": ref}).encode(),
        "sqs-claim-upper-case": b"\x03" + json.dumps({"ref": ref | {"sha256": "AB" * 32}}).encode(),
        "sqs-claim-spaced": b"\x03" + json.dumps({"ref": ref | {"sha256": "ab " * 32}}).encode(),
        "sqs-claim-of-false": b"\x03" + json.dumps({"ref": ref | {"bytes": True}}).encode(),
        "sqs-two-refs": b'\x03{"ref": {}, "ref": {}}',
        "sqs-celery": b'\x03{"body": "W10=", "headers": {"task": "celery.starmap"}, "properties": 5}',
    }


def _sealed_job() -> bytes:
    vectors = json.loads((VECTORS / "sealed" / "vectors.json").read_text())
    return next(bytes.fromhex(vector["object"]) for vector in vectors if vector["kind"] == "job")


def mutate(data: bytes, random: Random, mutate_bytes: MutateBytes) -> bytes:
    """Change the value under its outer form, seldom its place."""
    if not data or random.randrange(8) == 0:
        return mutate_bytes(data)
    place, value = data[:1], data[1:]
    if data[0] % (_SQS + 1) != _SQS:
        inner = sealed_objects.mutate if value.startswith(b"mrgc") else cbor_mutation
        return place + inner(value, random, mutate_bytes)
    if value.startswith(b"{"):
        return place + strict_json.mutate(value, random, mutate_bytes)
    try:
        return place + base64.b64encode(sealed_objects.mutate(base64.b64decode(value), random, mutate_bytes))
    except binascii.Error:
        return place + mutate_bytes(value)


TARGET = Target(check, seeds, mutate)
