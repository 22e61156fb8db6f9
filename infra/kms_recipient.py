"""The Recipient of a KMS call: from an attestation document to condition values and the key that may read the answer.

AWS: KMS Developer Guide, "AWS KMS condition keys for AWS Nitro Enclaves". Called by `infra.kms_service`. May import:
the standard library, cryptography, mrgc.attest, mrgc.errors, infra.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from infra.cms_encrypt import encrypt
from infra.kms_wire import KmsFault, Members, access_denied
from mrgc.attest.chain import Root
from mrgc.attest.verify import Policy, verify_enclave_document
from mrgc.errors import AttestationError

#: docs/spec.md §7 sends documents of at most 120 s; KMS itself accepts five minutes.
MAX_DOCUMENT_AGE_S: Final = 300
#: AWS: KMS API, RecipientInfo.
MAX_ATTESTATION_DOCUMENT_BYTES: Final = 262_144

_PREFIX: Final = "kms:RecipientAttestation:"
_POLICY: Final = Policy(pcrs={}, nonce=None, max_age_s=MAX_DOCUMENT_AGE_S, require_public_key=True)


@dataclass(frozen=True, slots=True)
class Recipient:
    """A verified enclave: what key policies see of it, and the key to which answers are encrypted."""

    conditions: Mapping[str, str]
    key: RSAPublicKey

    def wrap(self, plaintext: bytes) -> bytes:
        """Return CiphertextForRecipient."""
        return encrypt(plaintext, self.key)


def read_recipient(members: Members, *, root: Root, now_s: float) -> Recipient | None:
    """Verify the Recipient of a request; None when the request has none.

    Raises:
        KmsFault: the structure is not of the API's shape, or the document is refused.
    """
    fields = members.structure("Recipient")
    if fields is None:
        return None
    fields.ensure_only("KeyEncryptionAlgorithm", "AttestationDocument")
    if fields.text("KeyEncryptionAlgorithm") != "RSAES_OAEP_SHA_256":
        raise KmsFault("ValidationException", "KeyEncryptionAlgorithm is not RSAES_OAEP_SHA_256")
    data = fields.blob("AttestationDocument", highest=MAX_ATTESTATION_DOCUMENT_BYTES)
    try:
        verified = verify_enclave_document(data, root=root, at=datetime.fromtimestamp(now_s, UTC), policy=_POLICY)
    except AttestationError as err:
        raise access_denied(f"the attestation document is refused: {err.code}") from err
    if verified.recipient_key is None:
        raise access_denied("the attestation document has no public key")
    pcrs = {index: value.hex() for index, value in verified.document.pcrs.items()}
    conditions = {f"{_PREFIX}PCR{index}": value for index, value in pcrs.items()}
    return Recipient(conditions | {f"{_PREFIX}ImageSha384": pcrs[0]}, verified.recipient_key)
