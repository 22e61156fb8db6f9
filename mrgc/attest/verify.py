"""Verification of attestation documents: the one way to a `VerifiedDocument`.

The order is fixed: size, CBOR, algorithm, field rules, pinned root, chain, signature, policy. Called by the tenant's
client and by `infra.local_kms`. May import: the standard library, cryptography, mrgc.errors, mrgc.attest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from datetime import UTC, datetime
from typing import Final, Never, final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from mrgc.attest import cose
from mrgc.attest.chain import Root, verify_chain
from mrgc.attest.document import IMAGE_PCRS, MAX_PCRS, PCR_BYTES, AttestationDocument, Kind, parse_document
from mrgc.errors import (
    DebugDocument,
    DocumentFormatError,
    DocumentKindError,
    DocumentStale,
    NonceMismatch,
    PcrMismatch,
    PublicKeyError,
)

#: A document may be this much ahead of the verifier: both clocks follow NTP.
MAX_AHEAD_S: Final = 60
#: AWS: KMS API, RecipientInfo: the document's public key is RSA; docs/spec.md §6 uses 2048 bits.
RSA_KEY_BITS: Final = range(2048, 4096 + 1)

_SEAL: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a verifier demands beyond a genuine document.

    Attributes:
        pcrs: index → the 48 bytes that the document must carry.
        nonce: the verifier's own fresh bytes; None where another thing proves freshness (KMS: TLS and max_age_s).
        max_age_s: oldest accepted document; None only for archived records, judged at their own timestamp.
        allow_debug: accept an enclave whose memory the parent can read. For diagnosis, never for release of keys.
        require_public_key: the document must carry an RSA public key.
    """

    pcrs: Mapping[int, bytes]
    nonce: bytes | None
    max_age_s: float | None
    allow_debug: bool = False
    require_public_key: bool = False

    def __post_init__(self) -> None:
        for index, value in self.pcrs.items():
            if not 0 <= index < MAX_PCRS or len(value) != PCR_BYTES:
                raise ValueError(f"a policy's PCR{index} is not {PCR_BYTES} bytes")


@dataclass(frozen=True, slots=True)
class _Verified:
    """A document that passed everything, and its public key, parsed, if the policy demanded one."""

    document: AttestationDocument
    recipient_key: RSAPublicKey | None = field(repr=False)
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise TypeError("only the verifier makes verified documents")

    def __reduce__(self) -> Never:
        raise TypeError("a verified document does not leave its process")


@final
@dataclass(frozen=True, slots=True)
class VerifiedDocument(_Verified):
    """An enclave's document; only `verify_enclave_document` makes one."""

    def __init_subclass__(cls) -> Never:
        raise TypeError("a verified document has no other kinds")


@final
@dataclass(frozen=True, slots=True)
class VerifiedTpmDocument(_Verified):
    """An instance's NitroTPM document; only `verify_nitrotpm_document` makes one."""

    def __init_subclass__(cls) -> Never:
        raise TypeError("a verified document has no other kinds")


def verify_enclave_document(
    data: bytes | bytearray | memoryview, *, root: Root, at: datetime, policy: Policy
) -> VerifiedDocument:
    """Verify the attestation document of an enclave.

    Args:
        data: COSE_Sign1 as the NSM returned it.
        root: the pinned anchor.
        at: the verifier's clock; for an archived record the document's own timestamp. Aware.
        policy: what the document must say.

    Raises:
        AttestationError: the subclass names the first check that failed.
    """
    document = _verify(data, kind=Kind.ENCLAVE, root=root, at=at)
    # A debug enclave has real values in PCR3 and PCR4, so pinning those alone would admit it.
    if not policy.allow_debug and not all(any(document.pcrs.get(index, b"")) for index in IMAGE_PCRS):
        raise DebugDocument("the enclave's image is not measured: debug mode")
    return VerifiedDocument(document, _judge(document, at=at, policy=policy), _SEAL)


def verify_nitrotpm_document(
    data: bytes | bytearray | memoryview, *, root: Root, at: datetime, policy: Policy
) -> VerifiedTpmDocument:
    """Verify the NitroTPM attestation document of an EC2 instance; as `verify_enclave_document`.

    The meaning of its PCRs is another (AWS: EC2 User Guide, "Contents of the attestation document"), there is no
    debug mode, and the instance's owner can extend them: pin PCR4 with PCR12, or PCR7.
    """
    document = _verify(data, kind=Kind.NITROTPM, root=root, at=at)
    return VerifiedTpmDocument(document, _judge(document, at=at, policy=policy), _SEAL)


def claimed_time(data: bytes | bytearray | memoryview, *, kind: Kind) -> datetime:
    """Return what a document says of its own time, for archived records, which are judged at that time.

    Nothing is authenticated here. Passed to the verifier as `at`, the time is covered by the signature that it checks.

    Raises:
        DocumentFormatError: not a document, or its time is out of the calendar.
        DocumentKindError: a document of the other kind.
    """
    timestamp_ms = parse_document(cose.parse_sign1(data).payload, kind=kind).timestamp_ms
    try:
        return datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    except (OverflowError, ValueError, OSError) as err:
        raise DocumentFormatError("timestamp") from err


def _verify(data: bytes | bytearray | memoryview, *, kind: Kind, root: Root, at: datetime) -> AttestationDocument:
    if at.tzinfo is None:
        raise ValueError("the time of verification has no time zone")
    sign1 = cose.parse_sign1(data)
    document = parse_document(sign1.payload, kind=kind)
    leaf = verify_chain(document.cabundle, document.certificate, root=root, at=at)
    if not leaf.common_name.startswith(f"{document.module_id}."):
        raise DocumentKindError("the leaf certificate names another module")
    cose.verify(sign1, leaf.public_key)
    return document


def _judge(document: AttestationDocument, *, at: datetime, policy: Policy) -> RSAPublicKey | None:
    """Apply the policy; return the parsed public key if the policy demands one."""
    for index, value in policy.pcrs.items():
        if document.pcrs.get(index) != value:
            raise PcrMismatch(f"PCR{index} is not the policy's")
    if policy.nonce is not None and document.nonce != policy.nonce:
        raise NonceMismatch("the document does not answer this nonce")
    age_s = at.timestamp() - document.timestamp_ms / 1000
    if age_s < -MAX_AHEAD_S or (policy.max_age_s is not None and age_s > policy.max_age_s):
        raise DocumentStale("the document is too old, or from the future")
    return _rsa_key(document.public_key) if policy.require_public_key else None


def _rsa_key(spki: bytes | None) -> RSAPublicKey:
    try:
        key = load_der_public_key(spki or b"")
    except (ValueError, UnsupportedAlgorithm) as err:
        raise PublicKeyError("public_key is not a SubjectPublicKeyInfo") from err
    if not isinstance(key, RSAPublicKey) or key.key_size not in RSA_KEY_BITS:
        raise PublicKeyError("public_key is not an RSA key of 2048 to 4096 bits")
    if key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != spki:
        raise PublicKeyError("public_key is not in DER")
    return key
