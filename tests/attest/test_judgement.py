"""What a verifier demands of a genuine document, and the types that prove it was asked."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mrgc.attest.chain import validity
from mrgc.attest.document import Kind
from mrgc.attest.verify import (
    MAX_AHEAD_S,
    Policy,
    VerifiedDocument,
    VerifiedTpmDocument,
    claimed_time,
    verify_enclave_document,
    verify_nitrotpm_document,
)
from mrgc.errors import (
    BadSignature,
    DebugDocument,
    DocumentFormatError,
    DocumentKindError,
    DocumentStale,
    NonceMismatch,
    PcrMismatch,
    PublicKeyError,
    UntrustedChain,
)
from tests.attest.forge import (
    ABSENT,
    LIVE,
    NOW,
    NOW_S,
    PCR0,
    Pki,
    accept,
    below_root,
    document,
    fields,
    level,
    make_pki,
    signature,
)

ZERO: Final = bytes(48)
REGISTERS: Final = {index: bytes([index + 1]) * 48 for index in range(16)}


def spki(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """Return the DER SubjectPublicKeyInfo."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("debug", [{0: ZERO, 1: ZERO, 2: ZERO}, {0: ZERO}, {2: ZERO}])
def test_zero_image_registers_are_a_debug_enclave(pki: Pki, debug: dict[int, bytes]) -> None:
    """Mutant 21: even a policy that itself pins zeros admits no debug enclave."""
    data = document(pki, pcrs=REGISTERS | debug)
    with pytest.raises(DebugDocument):
        accept(data, pki, policy=Policy(pcrs=debug, nonce=None, max_age_s=300))


def test_absent_image_registers_are_no_measurement(pki: Pki) -> None:
    """A document that does not say what runs is treated like one that says zero."""
    with pytest.raises(DebugDocument):
        accept(document(pki, pcrs={4: PCR0}), pki, policy=Policy(pcrs={4: PCR0}, nonce=None, max_age_s=300))


def test_an_absent_register_does_not_match_a_pinned_one(pki: Pki) -> None:
    """A policy on PCR8 refuses a document without PCR8."""
    pinned = Policy(pcrs={0: PCR0, 8: ZERO}, nonce=None, max_age_s=300)
    with pytest.raises(PcrMismatch):
        accept(document(pki, pcrs={0: PCR0, 1: PCR0, 2: PCR0}), pki, policy=pinned)


@pytest.mark.parametrize("nonce", [None, b"", b"m" * 32, b"n" * 31])
def test_another_or_no_nonce_is_refused(pki: Pki, nonce: bytes | None) -> None:
    """Mutant 23."""
    with pytest.raises(NonceMismatch):
        accept(document(pki, nonce=nonce), pki, policy=Policy(pcrs={}, nonce=b"n" * 32, max_age_s=300))


def test_the_verifiers_own_nonce_is_accepted(pki: Pki) -> None:
    """The nonce that was asked for passes."""
    accept(document(pki, nonce=b"n" * 32), pki, policy=Policy(pcrs={}, nonce=b"n" * 32, max_age_s=300))


@pytest.mark.parametrize("age_s", [301, 3600, -MAX_AHEAD_S - 1])
def test_a_stale_or_future_document_is_refused(pki: Pki, age_s: int) -> None:
    """Mutant 18: outside the accepted age, to both sides."""
    with pytest.raises(DocumentStale):
        accept(document(pki, timestamp=(NOW_S - age_s) * 1000), pki)


def test_the_future_is_refused_in_archived_records_too(pki: Pki) -> None:
    """Without a greatest age, a document must still not be ahead of the time at which it is judged."""
    archived = Policy(pcrs={}, nonce=None, max_age_s=None)
    accept(document(pki, timestamp=(NOW_S - 9000) * 1000), pki, policy=archived)
    with pytest.raises(DocumentStale):
        accept(document(pki, timestamp=2**64 - 1), pki, policy=archived)


@pytest.mark.parametrize("age_s", [0, 300, -MAX_AHEAD_S])
def test_ages_within_the_bounds_are_accepted(pki: Pki, age_s: int) -> None:
    """The bounds themselves belong to the accepted range."""
    accept(document(pki, timestamp=(NOW_S - age_s) * 1000), pki)


def test_a_needed_public_key_must_be_rsa_in_der(pki: Pki) -> None:
    """Statement 6: a public key absent, not SPKI, not RSA, too short, or followed by a byte (mutant 24)."""
    needed = Policy(pcrs={}, nonce=None, max_age_s=300, require_public_key=True)
    good = spki(rsa.generate_private_key(65537, 2048))
    short = spki(rsa.generate_private_key(65537, 1024))  # noqa: S505 - the point
    curve = spki(ec.generate_private_key(ec.SECP256R1()))
    for bad in (None, b"", b"\x01" * 1024, short, curve, good + b"\0", good[:-1]):
        with pytest.raises(PublicKeyError):
            accept(document(pki, public_key=bad), pki, policy=needed)
    verified = accept(document(pki, public_key=good), pki, policy=needed)
    assert verified.recipient_key is not None
    assert verified.recipient_key.key_size == 2048
    assert accept(document(pki, public_key=good), pki).recipient_key is None


def test_a_policy_must_pin_whole_registers() -> None:
    """A policy with a truncated or unknown register is a mistake of its author, not a weaker policy."""
    for pinned in ({0: b"\x11" * 32}, {32: PCR0}, {-1: PCR0}, {0: b""}):
        with pytest.raises(ValueError, match="PCR"):
            Policy(pcrs=pinned, nonce=None, max_age_s=300)


def test_a_time_without_zone_is_refused(pki: Pki) -> None:
    """A naive time would be judged in the zone of whatever machine this is."""
    with pytest.raises(ValueError, match="time zone"):
        accept(document(pki), pki, at=NOW.replace(tzinfo=None))
    later = (NOW + timedelta(seconds=1)).astimezone(UTC)
    accept(document(pki), pki, at=later)


def test_a_nitrotpm_document_is_never_an_enclaves(pki: Pki) -> None:
    """Statement 6: under one root each kind passes its own verifier and fails the other's (mutant 22)."""
    module = "i-0123456789abcdef0-tpm0000000000000000"
    tpm = make_pki(below_root(leaf=level("leaf", common_name=f"{module}.local.aws")))
    data = document(tpm, module_id=module, pcrs=ABSENT, nitrotpm_pcrs=REGISTERS)
    anything = Policy(pcrs={}, nonce=None, max_age_s=300)
    assert type(verify_nitrotpm_document(data, root=tpm.root, at=NOW, policy=anything)) is VerifiedTpmDocument
    with pytest.raises(DocumentKindError):
        accept(data, tpm, policy=anything)
    with pytest.raises(DocumentKindError):
        verify_nitrotpm_document(document(pki), root=pki.root, at=NOW, policy=anything)
    # The field renamed, but everything else an instance's: its owner chooses TPM PCRs at will.
    with pytest.raises(DocumentKindError):
        accept(document(tpm, module_id=module), tpm, policy=anything)


def test_nothing_else_makes_a_verified_document(pki: Pki) -> None:
    """A verified document cannot be constructed, copied into another, or read from a pickle."""
    verified = accept(document(pki), pki)
    for kind in (VerifiedDocument, VerifiedTpmDocument):
        with pytest.raises(TypeError, match="only the verifier"):
            kind(verified.document, None, object())
    for leave in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="leave its process"):
            leave(verified)
    with pytest.raises(ValueError, match="seal"):
        dataclasses.replace(verified)  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        verified.document = verified.document  # type: ignore[misc]


def test_no_third_type_passes_for_a_verified_document(pki: Pki) -> None:
    """Neither a subclass nor a change of class makes one kind pass for the other."""
    verified = accept(document(pki), pki)
    for kind in (VerifiedDocument, VerifiedTpmDocument):
        with pytest.raises(TypeError, match="no other kinds"):
            type("Forged", (kind,), {"__post_init__": lambda *_: None})
    with pytest.raises((TypeError, AttributeError)):
        verified.__class__ = VerifiedTpmDocument  # type: ignore[assignment]
    assert type(verified) is VerifiedDocument


def test_only_the_verifier_names_its_seal() -> None:
    """No other module of the product gets at what makes verified documents."""
    root = Path(__file__).parents[2]
    sources = [path for name in ("mrgc", "enclave", "worker", "tasks", "infra") for path in (root / name).rglob("*.py")]
    assert [path.name for path in sources if "_SEAL" in path.read_text()] == ["verify.py"]


def test_a_document_tells_its_own_time_before_anything_is_believed(pki: Pki) -> None:
    """Archived records are judged at the time they claim, which their signature then covers."""
    assert claimed_time(document(pki), kind=Kind.ENCLAVE) == NOW
    with pytest.raises(DocumentKindError):
        claimed_time(document(pki), kind=Kind.NITROTPM)
    with pytest.raises(DocumentFormatError):
        claimed_time(document(pki, timestamp=2**64 - 1), kind=Kind.ENCLAVE)


def test_the_validity_of_a_chain_is_that_of_its_shortest_certificate(pki: Pki) -> None:
    """The leaf of three hours ends it; an intermediate that begins later begins it."""
    leaf, instance = (pki.chain[index].certificate for index in (-1, -2))
    assert validity(pki.der) == (leaf.not_valid_before_utc, leaf.not_valid_after_utc)
    assert validity(pki.der[:-1]) == (instance.not_valid_before_utc, instance.not_valid_after_utc)
    late = make_pki(issued_s=NOW_S + 600)
    assert validity([*pki.der, late.der[0]])[0] == late.chain[0].certificate.not_valid_before_utc


def test_a_refusal_names_the_register(pki: Pki) -> None:
    """Whoever pins several registers learns which one differs."""
    with pytest.raises(PcrMismatch, match="PCR8 "):
        accept(document(pki), pki, policy=Policy(pcrs={0: PCR0, 8: PCR0}, nonce=None, max_age_s=300))


def test_a_signature_of_another_key_is_refused(pki: Pki) -> None:
    """A document signed by the instance's key, whose certificate is in the chain too, is not the leaf's."""
    payload = cbor2.dumps(fields(pki))
    forged = signature(payload, pki.chain[-2].key)
    with pytest.raises(BadSignature):
        accept(cbor2.dumps([bytes.fromhex("a1013822"), {}, payload, forged]), pki)


def test_another_root_than_the_pinned_one_is_refused(pki: Pki) -> None:
    """A complete and correct PKI of someone else, with the same names, is not ours."""
    other = make_pki()
    with pytest.raises(UntrustedChain):
        verify_enclave_document(document(other), root=pki.root, at=datetime.fromtimestamp(NOW_S, UTC), policy=LIVE)
