"""COSE_Sign1 of attestation documents: what is accepted is what cbor2 reads, with the one header that Nitro writes."""

from __future__ import annotations

from random import Random

import cbor2

from fuzz.target import MutateBytes, Target
from fuzz.values import cbor_mutation
from mrgc.attest.cose import SIGNATURE_BYTES, parse_sign1
from mrgc.errors import DocumentFormatError

_TAG_18 = b"\xd2"


def check(data: bytes) -> bool:
    """Take one COSE_Sign1 apart."""
    try:
        sign1 = parse_sign1(data)
    except DocumentFormatError:
        return False
    assert cbor2.loads(data.removeprefix(_TAG_18)) == [sign1.protected, {}, sign1.payload, sign1.signature]
    assert sign1.protected == bytes.fromhex("a1013822")
    assert len(sign1.signature) == SIGNATURE_BYTES
    return True


def seeds() -> dict[str, bytes]:
    """Objects of the size of a signature; the genuine documents are seeds of `attestation_documents`."""
    parts = [bytes.fromhex("a1013822"), {}, b"payload", bytes(range(SIGNATURE_BYTES))]
    return {
        "small": cbor2.dumps(parts),
        "tagged": _TAG_18 + cbor2.dumps(parts),
        "tagged-twice": _TAG_18 * 2 + cbor2.dumps(parts),
        "tagged-otherwise": b"\xd8\x62" + cbor2.dumps(parts),
        "indefinite": b"\x9f" + cbor2.dumps(parts)[1:] + b"\xff",
        "es256": cbor2.dumps([bytes.fromhex("a10126"), *parts[1:]]),
        "unprotected": cbor2.dumps([parts[0], {1: -35}, *parts[2:]]),
        "detached": cbor2.dumps([*parts[:2], None, parts[3]]),
        "short-signature": cbor2.dumps([*parts[:3], bytes(64)]),
        "three-parts": cbor2.dumps(parts[:3]),
    }


def mutate(data: bytes, random: Random, mutate_bytes: MutateBytes) -> bytes:
    """Change a part under an intact tag, or any byte."""
    tag = _TAG_18 if data[:1] == _TAG_18 and random.randrange(8) else b""
    return tag + cbor_mutation(data[len(tag) :], random, mutate_bytes)


TARGET = Target(check, seeds, mutate)
