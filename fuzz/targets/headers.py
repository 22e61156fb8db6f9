"""Headers of sealed objects (docs/spec.md §2, §4, §8): what is accepted encodes to the received bytes."""

from __future__ import annotations

import json

from fuzz.target import VECTORS, Target
from fuzz.values import cbor_mutation
from mrgc.errors import FormatError
from mrgc.wire import strict_cbor
from mrgc.wire.headers import JobHeader, ResultHeader, StandaloneHeader

_PREFIX_BYTES = 12

#: A legal header of a standalone object.
STANDALONE = {
    "tenant": "acme",
    "key_arn": "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab",
    "edk": b"wrapped",
    "context": {"mrgc:use": "standalone", "mrgc:tenant": "acme"},
    "salt": bytes(32),
    "commit": bytes(32),
    "request_id": "request 1",
    "created": 1_795_000_000,
}


def check(data: bytes) -> bool:
    """Hold one decoded map to the rules of every header."""
    try:
        fields = strict_cbor.decode(data)
    except FormatError:
        return False
    accepted = [_is_header(kind, fields, data) for kind in (JobHeader, ResultHeader, StandaloneHeader)]
    assert sum(accepted) <= 1
    return any(accepted)


def _is_header(kind: type[JobHeader | ResultHeader | StandaloneHeader], fields: dict[str, object], data: bytes) -> bool:
    try:
        header = kind.from_map(fields)
    except FormatError:
        return False
    assert strict_cbor.encode(header.to_map()) == data
    return True


def seeds() -> dict[str, bytes]:
    """The headers of the sealed vectors that are legal, one of a standalone object, and one that is none."""
    found = {"empty": strict_cbor.encode({}), "standalone": strict_cbor.encode(STANDALONE)}
    for vector in json.loads((VECTORS / "sealed" / "vectors.json").read_text()):
        data = bytes.fromhex(vector["object"])
        length = int.from_bytes(data[6:8], "big")
        if vector["expect"] == "ok" and length <= TARGET.max_bytes:
            found[vector["name"]] = data[_PREFIX_BYTES : _PREFIX_BYTES + length]
    return found


TARGET = Target(check, seeds, cbor_mutation)
