"""Payloads of attestation documents: what is accepted is of one kind and within the limits of genuine documents."""

from __future__ import annotations

from random import Random

import cbor2

from fuzz.target import VECTORS, MutateBytes, Target
from fuzz.values import cbor_mutation, mutated
from mrgc.attest import cose
from mrgc.attest.document import (
    MAX_CABUNDLE,
    MAX_CERTIFICATE_BYTES,
    MAX_FIELD_BYTES,
    MAX_PCRS,
    PCR_BYTES,
    AttestationDocument,
    Kind,
    parse_document,
)
from mrgc.errors import AttestationError, DocumentFormatError


def check(data: bytes) -> bool:
    """Parse as both kinds of document, without verifying anything."""
    try:
        payload = cose.parse_sign1(data).payload
    except DocumentFormatError:
        return False
    accepted = [kind for kind in Kind if _is_of(kind, payload)]
    assert len(accepted) <= 1
    return bool(accepted)


def _is_of(kind: Kind, payload: bytes) -> bool:
    try:
        document = parse_document(payload, kind=kind)
    except AttestationError:
        return False
    fields = cbor2.loads(payload)
    assert document.pcrs == fields[kind.pcr_field]
    assert all(getattr(document, name) == fields.get(name) for name in ("public_key", "user_data", "nonce"))
    _ensure_bounded(document)
    return True


def _ensure_bounded(document: AttestationDocument) -> None:
    assert 1 <= len(document.pcrs) <= MAX_PCRS
    assert {len(value) for value in document.pcrs.values()} == {PCR_BYTES}
    assert 1 <= len(document.cabundle) <= MAX_CABUNDLE
    assert all(0 < len(each) <= MAX_CERTIFICATE_BYTES for each in (*document.cabundle, document.certificate))
    assert all(
        len(each or b"") <= MAX_FIELD_BYTES for each in (document.public_key, document.user_data, document.nonce)
    )


def seeds() -> dict[str, bytes]:
    """The genuine documents, two of them with fields changed under the old signature."""
    found = {path.stem: path.read_bytes() for path in sorted((VECTORS / "attestation").glob("*.cbor"))}
    enclave, tpm = found["evervault-prod-signed-eif"], found["vaportpm-nitrotpm"]
    return found | {
        "both-kinds": changed(enclave, nitrotpm_pcrs={0: bytes(48)}),
        "tpm-as-enclave": changed(tpm, module_id="i-0-enc0"),
        "field-too-long": changed(enclave, nonce=bytes(1_025)),
        "timestamp-in-seconds": changed(enclave, timestamp=1_700_000_000),
        "pcr-of-32-bytes": changed(enclave, pcrs={0: bytes(32)}),
        "no-bundle": changed(enclave, cabundle=[]),
        "unknown-field": changed(enclave, more={"a": [1]}),
    }


def changed(data: bytes, **changes: object) -> bytes:
    """Return a document with other fields under its old signature."""
    sign1 = cose.parse_sign1(data)
    return _signed_as(sign1, cbor2.dumps(cbor2.loads(sign1.payload) | changes))


def _signed_as(sign1: cose.Sign1, payload: bytes) -> bytes:
    return cbor2.dumps([sign1.protected, {}, payload, sign1.signature])


def mutate(data: bytes, random: Random, mutate_bytes: MutateBytes) -> bytes:
    """Change a field of the payload under an intact envelope, the envelope, or any byte."""
    if random.randrange(4) == 0:
        return cbor_mutation(data, random, mutate_bytes)
    try:
        sign1 = cose.parse_sign1(data)
        return _signed_as(sign1, cbor2.dumps(mutated(cbor2.loads(sign1.payload), random, mutate_bytes)))
    except (DocumentFormatError, cbor2.CBORError, TypeError, ValueError):
        return mutate_bytes(data)


TARGET = Target(check, seeds, mutate, max_bytes=9_000)
