"""Entries of a Redis stream (docs/spec.md §5): every entry is a job, a claim check or a bad message, never an error."""

from __future__ import annotations

from random import Random

from fuzz.target import MutateBytes, Target
from fuzz.values import cbor_mutation
from mrgc.errors import BY_CODE
from mrgc.wire import strict_cbor
from worker.admission import Admission, Refused
from worker.registry import parse_registry
from worker.sources.base import BadMessage, ClaimCheck
from worker.sources.redis_layout import parse_fields

_FIELDS = (b"job", b"ref", b"other")
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


def check(data: bytes) -> bool:
    """Read an entry whose one field is chosen by the first byte, and judge the claim check in it."""
    name = _FIELDS[data[0] % len(_FIELDS)] if data else b""
    body = parse_fields({name: data[1:]})
    if isinstance(body, BadMessage):
        assert body.code in BY_CODE
        return False
    if isinstance(body, ClaimCheck):
        assert strict_cbor.encode({"url": body.url, "sha256": body.sha256, "bytes": body.bytes}) == data[1:]
        return _is_allowed(body)
    assert (name, body) == (b"job", data[1:])
    return True


def _is_allowed(claim: ClaimCheck) -> bool:
    try:
        _ADMISSION.ensure_claim(claim, _TENANT)
    except Refused:
        return False
    assert claim.url.startswith(("s3://claims/", "s3://results/"))
    return True


def seeds() -> dict[str, bytes]:
    """Jobs and claim checks; the first byte is the number of the field."""
    claim = {"url": "s3://claims/a/b.mrgc", "sha256": bytes(32), "bytes": 600_000}
    return {
        "job": b"\x00mrgc",
        "claim": b"\x01" + strict_cbor.encode(claim),
        "claim-elsewhere": b"\x01" + strict_cbor.encode(claim | {"url": "s3://another/a"}),
        "claim-not-s3": b"\x01" + strict_cbor.encode(claim | {"url": "http://[::1/claims/"}),
        "claim-of-nothing": b"\x01" + strict_cbor.encode(claim | {"bytes": 0}),
        "claim-with-more": b"\x01" + strict_cbor.encode(claim | {"more": 1}),
        "other-field": b"\x02mrgc",
        "nothing": b"",
    }


def mutate(data: bytes, random: Random, mutate_bytes: MutateBytes) -> bytes:
    """Change the value, seldom the name of its field."""
    if random.randrange(8) == 0:
        return mutate_bytes(data)
    return data[:1] + cbor_mutation(data[1:], random, mutate_bytes)


TARGET = Target(check, seeds, mutate)
