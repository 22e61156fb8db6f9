"""COSE_Sign1 (RFC 9052 §4.2) as the Nitro hypervisor writes it: ES384, empty unprotected header, payload inside.

Called by `mrgc.attest.verify`. May import: the standard library, cbor2, cryptography, mrgc.errors. It does not sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from mrgc.attest import cbor
from mrgc.errors import BadSignature, DocumentFormatError

#: The NSM driver's answer buffer is 0x3000 bytes (Linux, drivers/misc/nsm.c); no document is larger.
MAX_DOCUMENT_BYTES: Final = 0x3000
#: RFC 9053 §2.1: r and s of ES384, each as long as the order of P-384.
SIGNATURE_BYTES: Final = 96

_TAG_18: Final = 0xD2
_ES384_HEADER: Final = bytes.fromhex("a1013822")  # {1: -35}; all genuine documents have these bytes
_P384_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973


@dataclass(frozen=True, slots=True)
class Sign1:
    """The parts of a COSE_Sign1 that its signature covers, and the signature: r ‖ s, 96 bytes."""

    protected: bytes
    payload: bytes
    signature: bytes


def parse_sign1(data: bytes | bytearray | memoryview) -> Sign1:
    """Take a COSE_Sign1 apart; nothing of it is authenticated yet.

    Args:
        data: the object, tagged with 18 as RFC 9052 §4.2 says, or untagged as Nitro sends it.

    Raises:
        DocumentFormatError: too large, not the structure, or another algorithm than ES384.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise DocumentFormatError("document is too large")
    whole = bytes(data)
    item = cbor.decode(whole[1:] if whole[:1] == bytes([_TAG_18]) else whole)
    if type(item) is not list or len(item) != 4:
        raise DocumentFormatError("not a COSE_Sign1")
    protected, unprotected, payload, signature = item
    if not (type(protected) is bytes and type(payload) is bytes and type(signature) is bytes):
        raise DocumentFormatError("not a COSE_Sign1")
    # An algorithm among unprotected parameters would be the sender's word against the signer's.
    if protected != _ES384_HEADER or unprotected != {}:
        raise DocumentFormatError("COSE header is not exactly ES384")
    if len(signature) != SIGNATURE_BYTES:
        raise DocumentFormatError("signature is not 96 bytes")
    return Sign1(protected, payload, signature)


def verify(sign1: Sign1, public_key: ec.EllipticCurvePublicKey) -> None:
    """Verify the signature over the received bytes (Sig_structure of RFC 9052 §4.4, no external data).

    ECDSA lets (r, n - s) verify as well: never use document bytes as an identity, or as a key of a replay store.

    Raises:
        BadSignature: the key did not sign this payload.
    """
    half = SIGNATURE_BYTES // 2
    r = int.from_bytes(sign1.signature[:half], "big")
    s = int.from_bytes(sign1.signature[half:], "big")
    if not (0 < r < _P384_ORDER and 0 < s < _P384_ORDER):
        raise BadSignature("signature is out of range")
    signed = cbor2.dumps(["Signature1", sign1.protected, b"", sign1.payload])
    try:
        public_key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as err:
        raise BadSignature("the leaf key did not sign this document") from err
