"""The attestation document inside a COSE_Sign1: its fields, their limits, and the two kinds that share a root.

Limits: AWS, nsm-api, docs/attestation_process.md; where that page contradicts itself (user_data and nonce of 512 or
1024 bytes) genuine documents decide: 1024. Called by `mrgc.attest.verify`. May import: the standard library,
mrgc.errors, mrgc.attest.cbor. Nothing here is authenticated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, Final

from mrgc.attest import cbor
from mrgc.errors import DocumentFormatError, DocumentKindError

PCR_BYTES: Final = 48  #: SHA-384, the only digest that Nitro uses.
MAX_PCRS: Final = 32  #: Indices 0..31.
IMAGE_PCRS: Final = (0, 1, 2)  #: The whole image, kernel and boot, application; zero in debug mode.
MAX_CERTIFICATE_BYTES: Final = 1024
MAX_CABUNDLE: Final = 8  #: Genuine bundles have four entries.
MAX_FIELD_BYTES: Final = 1024  #: public_key, user_data, nonce.
#: 2019-10-28, when root G1 begins; also refuses timestamps that count seconds.
MIN_TIMESTAMP_MS: Final = 1_572_220_800_000

_MODULE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Kind(Enum):
    """What attests: an enclave, or a whole instance through its NitroTPM, which its owner can extend at will."""

    ENCLAVE = "enclave"
    NITROTPM = "nitrotpm"

    @property
    def pcr_field(self) -> str:
        """Return the only field in which a document of this kind has its PCRs."""
        return "pcrs" if self is Kind.ENCLAVE else "nitrotpm_pcrs"

    @property
    def marker(self) -> str:
        """Return what module_id and the leaf's common name contain for this kind."""
        return "-enc" if self is Kind.ENCLAVE else "-tpm"


@dataclass(frozen=True, slots=True)
class AttestationDocument:
    """The fields of a document of either kind; an absent optional field and an explicit null are both None."""

    module_id: str
    timestamp_ms: int
    digest: str
    pcrs: Mapping[int, bytes]
    certificate: bytes
    cabundle: tuple[bytes, ...]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None


def parse_document(payload: bytes, *, kind: Kind) -> AttestationDocument:
    """Decode a payload and hold every field to its rule; unknown extra fields are ignored.

    Raises:
        DocumentKindError: the payload is of the other kind, or claims to be both.
        DocumentFormatError: a field is missing, of another type, or out of its limits.
    """
    fields = cbor.decode(payload)
    if type(fields) is not dict:
        raise DocumentFormatError("payload is not a map")
    _ensure_kind(fields, kind)
    return AttestationDocument(
        module_id=_module_id(fields, kind),
        timestamp_ms=_timestamp_ms(fields),
        digest=_digest(fields),
        pcrs=_pcrs(fields[kind.pcr_field]),
        certificate=_certificate(fields.get("certificate")),
        cabundle=_cabundle(fields),
        public_key=_optional(fields, "public_key"),
        user_data=_optional(fields, "user_data"),
        nonce=_optional(fields, "nonce"),
    )


def _ensure_kind(fields: Mapping[Any, Any], kind: Kind) -> None:
    present = {each for each in Kind if each.pcr_field in fields}
    if not present:
        raise DocumentFormatError("document has no PCRs")
    if present != {kind}:
        raise DocumentKindError(f"not only an {kind.value} document")


def _module_id(fields: Mapping[Any, Any], kind: Kind) -> str:
    value = fields.get("module_id")
    if type(value) is not str or _MODULE_ID.fullmatch(value) is None:
        raise DocumentFormatError("module_id")
    if [each for each in Kind if each.marker in value] != [kind]:
        raise DocumentKindError(f"module_id does not name an {kind.value}")
    return value


def _timestamp_ms(fields: Mapping[Any, Any]) -> int:
    value = fields.get("timestamp")
    if type(value) is not int or value < MIN_TIMESTAMP_MS:
        raise DocumentFormatError("timestamp")
    return value


def _digest(fields: Mapping[Any, Any]) -> str:
    if fields.get("digest") != "SHA384":
        raise DocumentFormatError("digest")
    return "SHA384"


def _pcrs(value: Any) -> Mapping[int, bytes]:
    if type(value) is not dict or not 1 <= len(value) <= MAX_PCRS:
        raise DocumentFormatError("pcrs")
    for index, register in value.items():
        if type(index) is not int or not 0 <= index < MAX_PCRS:
            raise DocumentFormatError("pcrs: index")
        if type(register) is not bytes or len(register) != PCR_BYTES:
            raise DocumentFormatError("pcrs: length")
    return MappingProxyType(value)


def _certificate(value: Any) -> bytes:
    if type(value) is not bytes or not 1 <= len(value) <= MAX_CERTIFICATE_BYTES:
        raise DocumentFormatError("certificate")
    return value


def _cabundle(fields: Mapping[Any, Any]) -> tuple[bytes, ...]:
    value = fields.get("cabundle")
    if type(value) is not list or not 1 <= len(value) <= MAX_CABUNDLE:
        raise DocumentFormatError("cabundle")
    return tuple(_certificate(entry) for entry in value)


def _optional(fields: Mapping[Any, Any], name: str) -> bytes | None:
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not bytes or len(value) > MAX_FIELD_BYTES:
        raise DocumentFormatError(name)
    return value
