"""CMS EnvelopedData (RFC 5652 §6) in the very shape of AWS KMS's CiphertextForRecipient.

Version 2, one KeyTransRecipientInfo by subjectKeyIdentifier, RSAES-OAEP with SHA-256 (RFC 3560), AES-256-CBC, BER with
indefinite lengths where KMS has them: `write` reproduces a published answer of KMS byte for byte. The form has no
authentication: that comes from TLS. Called by `infra.kms_service`. May import: the standard library, cryptography.
It writes only; the enclave has the reader.
"""

from __future__ import annotations

import hashlib
import os
from typing import Final, NamedTuple

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_INTEGER, _OCTET_STRING, _OID, _SEQUENCE, _SET = 0x02, 0x04, 0x06, 0x30, 0x31
_CONTEXT_0, _CONTEXT_0_CONSTRUCTED, _CONTEXT_1_CONSTRUCTED = 0x80, 0xA0, 0xA1
_NULL: Final = b"\x05\x00"
_END_OF_CONTENTS: Final = b"\x00\x00"

_ENVELOPED_DATA: Final = bytes.fromhex("2a864886f70d010703")
_DATA: Final = bytes.fromhex("2a864886f70d010701")
_RSAES_OAEP: Final = bytes.fromhex("2a864886f70d010107")
_MGF1: Final = bytes.fromhex("2a864886f70d010108")
_SHA256: Final = bytes.fromhex("608648016503040201")
_AES256_CBC: Final = bytes.fromhex("60864801650304012a")

_AES_BLOCK_BYTES: Final = 16


class Envelope(NamedTuple):
    """The four values that differ from one EnvelopedData to the next."""

    key_identifier: bytes
    wrapped_key: bytes
    iv: bytes
    ciphertext: bytes


def encrypt(plaintext: bytes, recipient: RSAPublicKey) -> bytes:
    """Encrypt `plaintext` under a fresh AES-256 key for the holder of the RSA key; return BER."""
    content_key = os.urandom(32)
    iv = os.urandom(_AES_BLOCK_BYTES)
    padder = PKCS7(_AES_BLOCK_BYTES * 8).padder()
    encryptor = Cipher(algorithms.AES256(content_key), modes.CBC(iv)).encryptor()
    ciphertext = encryptor.update(padder.update(plaintext) + padder.finalize()) + encryptor.finalize()
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label=None)
    spki = recipient.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return write(Envelope(hashlib.sha256(spki).digest(), recipient.encrypt(content_key, oaep), iv, ciphertext))


def write(envelope: Envelope) -> bytes:
    """Write the BER of one envelope, content as one segment of a constructed, indefinite [0]."""
    recipient = _definite(
        _SEQUENCE,
        _definite(_INTEGER, b"\x02"),
        _definite(_CONTEXT_0, envelope.key_identifier),
        _oaep_sha256(),
        _definite(_OCTET_STRING, envelope.wrapped_key),
    )
    content = _indefinite(
        _SEQUENCE,
        _definite(_OID, _DATA),
        _definite(_SEQUENCE, _definite(_OID, _AES256_CBC), _definite(_OCTET_STRING, envelope.iv)),
        _indefinite(_CONTEXT_0_CONSTRUCTED, _definite(_OCTET_STRING, envelope.ciphertext)),
    )
    enveloped = _indefinite(_SEQUENCE, _definite(_INTEGER, b"\x02"), _definite(_SET, recipient), content)
    return _indefinite(_SEQUENCE, _definite(_OID, _ENVELOPED_DATA), _indefinite(_CONTEXT_0_CONSTRUCTED, enveloped))


def _oaep_sha256() -> bytes:
    """AlgorithmIdentifier of RSAES-OAEP with SHA-256 for both the label and MGF1 (RFC 4055 §4.1)."""
    sha256 = _definite(_SEQUENCE, _definite(_OID, _SHA256), _NULL)
    mgf1 = _definite(_SEQUENCE, _definite(_OID, _MGF1), sha256)
    parameters = _definite(
        _SEQUENCE, _definite(_CONTEXT_0_CONSTRUCTED, sha256), _definite(_CONTEXT_1_CONSTRUCTED, mgf1)
    )
    return _definite(_SEQUENCE, _definite(_OID, _RSAES_OAEP), parameters)


def _definite(tag: int, *contents: bytes) -> bytes:
    body = b"".join(contents)
    if len(body) < 0x80:
        return bytes([tag, len(body)]) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + body


def _indefinite(tag: int, *contents: bytes) -> bytes:
    return bytes([tag, 0x80]) + b"".join(contents) + _END_OF_CONTENTS
