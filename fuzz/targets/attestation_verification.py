"""Attestation documents under AWS's root: whatever is accepted is, field for field, one that AWS signed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import cache

from fuzz.target import VECTORS, Target
from fuzz.targets import attestation_documents
from mrgc.attest import cose
from mrgc.attest.chain import aws_root
from mrgc.attest.document import AttestationDocument, Kind, parse_document
from mrgc.attest.verify import Policy, verify_enclave_document, verify_nitrotpm_document
from mrgc.errors import AttestationError

_FOLDER = VECTORS / "attestation"
_POLICY = Policy(pcrs={}, nonce=None, max_age_s=None, allow_debug=True)
_ROOT = aws_root()


def check(data: bytes) -> bool:
    """Verify as both kinds of document, at the genuine time that is nearest to the document's own."""
    return _is_accepted(data, Kind.ENCLAVE) or _is_accepted(data, Kind.NITROTPM)


def _is_accepted(data: bytes, kind: Kind) -> bool:
    verify = verify_enclave_document if kind is Kind.ENCLAVE else verify_nitrotpm_document
    try:
        claimed_ms = parse_document(cose.parse_sign1(data).payload, kind=kind).timestamp_ms
        at_ms = min((each.timestamp_ms for each in _genuine()), key=lambda ms: abs(ms - claimed_ms))
        at = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=at_ms)
        verified = verify(data, root=_ROOT, at=at, policy=_POLICY)
    except AttestationError:
        return False
    assert verified.document in _genuine()
    return True


def seeds() -> dict[str, bytes]:
    """The genuine documents, one whose signature has a bit flipped, and one with another nonce under its signature."""
    found = {path.stem: path.read_bytes() for path in sorted(_FOLDER.glob("*.cbor"))}
    genuine = found["evervault-prod-signed-eif"]
    flipped = genuine[:-1] + bytes([genuine[-1] ^ 1])
    return found | {"flipped": flipped, "other-nonce": attestation_documents.changed(genuine, nonce=b"another")}


@cache
def _genuine() -> tuple[AttestationDocument, ...]:
    found = []
    for facts in json.loads((_FOLDER / "expected.json").read_text()):
        payload = cose.parse_sign1((_FOLDER / facts["file"]).read_bytes()).payload
        for kind in Kind:
            try:
                found.append(parse_document(payload, kind=kind))
            except AttestationError:
                continue
    return tuple(found)


TARGET = Target(check, seeds, attestation_documents.mutate, max_bytes=9_000)
