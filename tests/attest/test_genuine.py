"""The verifier on documents that AWS signed."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import cbor2
import pytest

from mrgc.attest.chain import aws_root, load_root
from mrgc.attest.verify import (
    Policy,
    VerifiedDocument,
    VerifiedTpmDocument,
    verify_enclave_document,
    verify_nitrotpm_document,
)
from mrgc.errors import (
    AttestationError,
    BadSignature,
    ConfigError,
    DebugDocument,
    DocumentKindError,
    NonceMismatch,
    PcrMismatch,
    PublicKeyError,
    UntrustedChain,
)
from tests.attest.conftest import Genuine

PROD: Final = "blocky-nitro-prod.cbor"
DEBUG: Final = "blocky-nitro-debug.cbor"
SIGNED: Final = "evervault-prod-signed-eif.cbor"
TPM: Final = "vaportpm-nitrotpm.cbor"
ARCHIVED: Final = Policy(pcrs={}, nonce=None, max_age_s=None)
ROOT_FILES: Final = Path(__file__).parents[1] / "vectors" / "root"


def verify(each: Genuine, policy: Policy = ARCHIVED) -> VerifiedDocument:
    """Verify under the AWS root, at the document's own time."""
    return verify_enclave_document(each.data, root=aws_root(), at=each.at, policy=policy)


def altered(each: Genuine, change: Callable[[dict[str, Any]], object]) -> Genuine:
    """Return the document with a changed payload and its old signature."""
    protected, unprotected, payload, signature = cbor2.loads(each.data)
    fields = cbor2.loads(payload)
    change(fields)
    return Genuine(cbor2.dumps([protected, unprotected, cbor2.dumps(fields), signature]), each.facts)


@pytest.mark.parametrize("name", [PROD, SIGNED])
def test_production_documents_verify_and_say_what_was_recorded(genuine: dict[str, Genuine], name: str) -> None:
    """A production enclave's document verifies at its own time with every field as recorded."""
    facts = genuine[name].facts
    document = verify(genuine[name]).document
    assert document.module_id == facts["module_id"]
    assert document.timestamp_ms == facts["timestamp_ms"]
    assert {str(index): value.hex() for index, value in document.pcrs.items()} == facts["pcrs"]
    assert (document.nonce or b"").hex() == (facts["nonce_hex"] if name == SIGNED else "01" * 1024)
    assert (document.user_data is None) == (facts["user_data_hex"] is None)


def test_a_nitrotpm_document_verifies_as_such_and_never_as_an_enclaves(genuine: dict[str, Genuine]) -> None:
    """Statement 6: the indefinite-length NitroTPM document of 2026 verifies as NitroTPM only."""
    each = genuine[TPM]
    verified = verify_nitrotpm_document(each.data, root=aws_root(), at=each.at, policy=ARCHIVED)
    assert type(verified) is VerifiedTpmDocument
    assert {str(index): value.hex() for index, value in verified.document.pcrs.items()} == each.facts["pcrs"]
    with pytest.raises(DocumentKindError):
        verify(each)


@pytest.mark.parametrize("name", [PROD, DEBUG, SIGNED])
def test_an_enclave_document_never_verifies_as_nitrotpm(genuine: dict[str, Genuine], name: str) -> None:
    """Statement 6: no enclave document passes for a NitroTPM one."""
    with pytest.raises(DocumentKindError):
        verify_nitrotpm_document(genuine[name].data, root=aws_root(), at=genuine[name].at, policy=ARCHIVED)


def test_a_debug_document_is_refused_unless_asked_for(genuine: dict[str, Genuine]) -> None:
    """Statement 6: a debug enclave is refused even where only its real PCR4 is pinned; diagnosis may ask."""
    pcr4 = bytes.fromhex(genuine[DEBUG].facts["pcrs"]["4"])
    with pytest.raises(DebugDocument):
        verify(genuine[DEBUG], Policy(pcrs={4: pcr4}, nonce=None, max_age_s=None))
    allowed = Policy(pcrs={4: pcr4}, nonce=None, max_age_s=None, allow_debug=True)
    assert type(verify(genuine[DEBUG], allowed)) is VerifiedDocument


def test_policy_is_applied_to_a_genuine_document(genuine: dict[str, Genuine]) -> None:
    """PCR, nonce and public key demands each refuse a document that is otherwise good."""
    with pytest.raises(PcrMismatch):
        verify(genuine[PROD], Policy(pcrs={0: b"\x01" * 48}, nonce=None, max_age_s=None))
    with pytest.raises(NonceMismatch):
        verify(genuine[PROD], Policy(pcrs={}, nonce=b"\x01" * 32, max_age_s=None))
    with pytest.raises(PublicKeyError):
        verify(genuine[PROD], Policy(pcrs={}, nonce=None, max_age_s=None, require_public_key=True))


def test_pcr4_is_the_instance_id_extended_into_zero(genuine: dict[str, Genuine]) -> None:
    """PCR4 of every enclave document follows from the instance part of module_id."""
    for name in (PROD, DEBUG, SIGNED):
        facts = genuine[name].facts
        instance = facts["module_id"].partition("-enc")[0].encode()
        assert hashlib.sha384(bytes(48) + instance).hexdigest() == facts["pcrs"]["4"]


@pytest.mark.parametrize("hours", [-3.1, 3.1])
def test_a_document_is_refused_outside_its_certificates_validity(genuine: dict[str, Genuine], hours: float) -> None:
    """Three hours before or after, the leaf is not valid."""
    each = genuine[PROD]
    with pytest.raises(UntrustedChain):
        verify_enclave_document(each.data, root=aws_root(), at=each.at + timedelta(hours=hours), policy=ARCHIVED)


def test_every_flipped_signature_byte_is_noticed(genuine: dict[str, Genuine]) -> None:
    """Mutant 1: no byte of the signature may change."""
    each = genuine[PROD]
    for offset in range(len(each.data) - 96, len(each.data)):
        damaged = bytearray(each.data)
        damaged[offset] ^= 1
        with pytest.raises(BadSignature):
            verify_enclave_document(damaged, root=aws_root(), at=each.at, policy=ARCHIVED)


def test_flipped_bytes_anywhere_raise_only_attestation_errors(genuine: dict[str, Genuine]) -> None:
    """Whatever byte is damaged, the verifier refuses with one of its own errors."""
    each = genuine[SIGNED]
    for offset in range(0, len(each.data), 7):
        damaged = bytearray(each.data)
        damaged[offset] ^= 0x41
        with pytest.raises(AttestationError):
            verify_enclave_document(bytes(damaged), root=aws_root(), at=each.at, policy=ARCHIVED)


def test_a_changed_pcr_breaks_the_signature(genuine: dict[str, Genuine]) -> None:
    """Mutant 4: PCR0 replaced by the wanted one, signature kept."""
    forged = altered(genuine[PROD], lambda fields: fields["pcrs"].update({0: b"\x22" * 48}))
    with pytest.raises(BadSignature):
        verify(forged, Policy(pcrs={0: b"\x22" * 48}, nonce=None, max_age_s=None))


def test_parts_of_other_genuine_documents_do_not_fit(genuine: dict[str, Genuine]) -> None:
    """Mutants 5 and 6: a leaf or a bundle of another document, though signed by AWS, does not lead to this one."""
    other = cbor2.loads(cbor2.loads(genuine[SIGNED].data)[2])
    sibling = cbor2.loads(cbor2.loads(genuine[DEBUG].data)[2])
    for change in (
        {"certificate": other["certificate"]},
        {"certificate": sibling["certificate"]},
        {"cabundle": other["cabundle"]},
        {"certificate": other["certificate"], "cabundle": other["cabundle"]},
    ):
        with pytest.raises(AttestationError):
            verify(altered(genuine[PROD], lambda fields, change=change: fields.update(change)))  # type: ignore[misc]


def test_the_packaged_root_is_the_one_that_aws_published() -> None:
    """The pinned root is byte for byte the certificate inside AWS's archive, whose digest AWS prints."""
    archive = ROOT_FILES / "AWS_NitroEnclaves_Root-G1.zip"
    digest = "8cf60e2b2efca96c6a9e71e851d00c1b6991cc09eadbe64a6a1d1b1eb9faff7c"
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == digest
    with zipfile.ZipFile(archive) as file:
        published = load_root(file.read(next(name for name in file.namelist() if name.endswith(".pem"))))
    assert published == aws_root()


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"])
def test_a_root_file_that_is_not_a_certificate_is_a_configuration_error(pem: bytes) -> None:
    """A verifier never starts with a root that it could not read."""
    with pytest.raises(ConfigError):
        load_root(pem)


def test_two_roots_in_one_file_are_a_configuration_error() -> None:
    """Which of two roots would be trusted must not be a matter of order."""
    pem = (ROOT_FILES / "aws-nitro-root-g1.pem").read_bytes()
    with pytest.raises(ConfigError):
        load_root(pem + pem)
