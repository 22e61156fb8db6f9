"""CiphertextForRecipient of AWS KMS: a strict reader of its CMS EnvelopedData, and its opening.

KMS answers in BER: indefinite lengths, and content that is primitive, or segmented (RFC 5652 §6.1, X.690 §8.1.3,
§8.7). This reader takes the one shape that KMS documents (EnvelopedData version 2 with one KeyTransRecipientInfo by
subject key identifier, RSAES-OAEP with SHA-256, AES-256-CBC) and refuses all others.

The structure carries no authentication of its own: anybody who knows the public key can make one. What it yields is
trusted only because TLS to KMS ends inside the enclave, and because a job's commitment must match the key.

Called by `enclave.kms_handler`. May import: the standard library, cryptography, mrgc.errors.
"""

from __future__ import annotations

import hmac
from typing import Final, NamedTuple

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from mrgc.errors import AuthenticationError

MAX_CMS_BYTES: Final = 8_192  #: KMS plaintexts end at 4,096 bytes; the rest of the structure takes below 600.
_MAX_DEPTH: Final = 12  #: KMS nests 10 deep (the OAEP hash identifier).
_MAX_NODES: Final = 256  #: KMS uses about 30; segments of content are the only part that may multiply.
_BLOCK_BYTES: Final = 16
_CONTENT_KEY_BYTES: Final = 32

_INTEGER, _OCTET_STRING, _NULL, _OID, _SEQUENCE, _SET = 0x02, 0x04, 0x05, 0x06, 0x30, 0x31
_PRIMITIVE_0, _CONSTRUCTED_0, _CONSTRUCTED_1 = 0x80, 0xA0, 0xA1
_CONSTRUCTED: Final = 0x20
_INDEFINITE: Final = 0x80

_VERSION_2: Final = b"\x02"
_ENVELOPED_DATA: Final = bytes.fromhex("2a864886f70d010703")  # 1.2.840.113549.1.7.3, RFC 5652 §6.1
_DATA: Final = bytes.fromhex("2a864886f70d010701")  # 1.2.840.113549.1.7.1, RFC 5652 §4
_RSAES_OAEP: Final = bytes.fromhex("2a864886f70d010107")  # 1.2.840.113549.1.1.7, RFC 8017 §A.2.1
_MGF1: Final = bytes.fromhex("2a864886f70d010108")  # 1.2.840.113549.1.1.8
_SHA256: Final = bytes.fromhex("608648016503040201")  # 2.16.840.1.101.3.4.2.1
_AES256_CBC: Final = bytes.fromhex("60864801650304012a")  # 2.16.840.1.101.3.4.1.42

_OAEP: Final = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)


class EnvelopedData(NamedTuple):
    """The three fields of a KMS answer that opening needs."""

    encrypted_key: bytes
    iv: bytes
    ciphertext: bytes


class _Node(NamedTuple):
    """One BER element: `value` if primitive, `parts` if constructed."""

    tag: int
    value: bytes
    parts: list[_Node]


class _Malformed(Exception):
    """The bytes are not the shape that KMS sends; never leaves this module."""


def open_enveloped(data: bytes, *, private_key: RSAPrivateKey) -> bytearray:
    """Open a CiphertextForRecipient.

    Args:
        data: BER, as KMS sent it.
        private_key: the RSA key whose public half was in the attestation document of the call.

    Returns:
        The plaintext, in a buffer that its owner zeroes.

    Raises:
        AuthenticationError: whatever is wrong; docs/spec.md §7 allows no finer answer.
    """
    envelope = parse_enveloped(data)
    try:
        content_key = private_key.decrypt(envelope.encrypted_key, _OAEP)
    except ValueError:
        raise AuthenticationError from None
    if len(content_key) != _CONTENT_KEY_BYTES:
        raise AuthenticationError
    return _decrypt_cbc(content_key, envelope)


def parse_enveloped(data: bytes) -> EnvelopedData:
    """Read the fields of a CiphertextForRecipient.

    Raises:
        AuthenticationError: the bytes are not the one shape that KMS sends.
    """
    if len(data) > MAX_CMS_BYTES:
        raise AuthenticationError
    try:
        return _enveloped(_Reader(data).read_all())
    except _Malformed:
        raise AuthenticationError from None


def _decrypt_cbc(content_key: bytes, envelope: EnvelopedData) -> bytearray:
    decryptor = Cipher(algorithms.AES256(content_key), modes.CBC(envelope.iv)).decryptor()
    padded = bytearray(len(envelope.ciphertext) + _BLOCK_BYTES - 1)
    length = decryptor.update_into(envelope.ciphertext, padded)
    decryptor.finalize()
    del padded[length:]
    # RFC 5652 §6.3. Compared without an early exit; the answer is the same for every defect.
    count = padded[-1]
    if not 1 <= count <= _BLOCK_BYTES or not hmac.compare_digest(padded[-count:], bytes([count]) * count):
        padded[:] = bytes(length)
        raise AuthenticationError
    del padded[-count:]
    return padded


# --- the one shape, RFC 5652 §6.1 and §6.2.1 -------------------------------------------------------------------


def _enveloped(content_info: _Node) -> EnvelopedData:
    content_type, explicit = _parts(content_info, _SEQUENCE, 2)
    _ensure(_primitive(content_type, _OID) == _ENVELOPED_DATA)
    (enveloped,) = _parts(explicit, _CONSTRUCTED_0, 1)
    version, recipients, encrypted_content = _parts(enveloped, _SEQUENCE, 3)
    _ensure(_primitive(version, _INTEGER) == _VERSION_2)
    (recipient,) = _parts(recipients, _SET, 1)
    encrypted_key = _recipient(recipient)
    iv, ciphertext = _encrypted_content(encrypted_content)
    return EnvelopedData(encrypted_key, iv, ciphertext)


def _recipient(recipient: _Node) -> bytes:
    version, identifier, algorithm, encrypted_key = _parts(recipient, _SEQUENCE, 4)
    _ensure(_primitive(version, _INTEGER) == _VERSION_2)
    # The identifier's derivation is not documented; the enclave has one RSA key, so it decides nothing.
    _ensure(1 <= len(_primitive(identifier, _PRIMITIVE_0)) <= 64)
    _ensure_oaep_sha256(algorithm)
    return _primitive(encrypted_key, _OCTET_STRING)


def _ensure_oaep_sha256(algorithm: _Node) -> None:
    identifier, parameters = _parts(algorithm, _SEQUENCE, 2)
    _ensure(_primitive(identifier, _OID) == _RSAES_OAEP)
    hash_field, mask_field = _parts(parameters, _SEQUENCE, 2)
    (hash_algorithm,) = _parts(hash_field, _CONSTRUCTED_0, 1)
    _ensure_sha256(hash_algorithm)
    (mask_algorithm,) = _parts(mask_field, _CONSTRUCTED_1, 1)
    mask_identifier, mask_hash = _parts(mask_algorithm, _SEQUENCE, 2)
    _ensure(_primitive(mask_identifier, _OID) == _MGF1)
    _ensure_sha256(mask_hash)


def _ensure_sha256(algorithm: _Node) -> None:
    # RFC 4055 §2.1: parameters are NULL or absent, and both are to be accepted.
    _ensure(algorithm.tag == _SEQUENCE and 1 <= len(algorithm.parts) <= 2)
    _ensure(_primitive(algorithm.parts[0], _OID) == _SHA256)
    _ensure(all(_primitive(part, _NULL) == b"" for part in algorithm.parts[1:]))


def _encrypted_content(node: _Node) -> tuple[bytes, bytes]:
    content_type, algorithm, content = _parts(node, _SEQUENCE, 3)
    _ensure(_primitive(content_type, _OID) == _DATA)
    identifier, iv_field = _parts(algorithm, _SEQUENCE, 2)
    _ensure(_primitive(identifier, _OID) == _AES256_CBC)
    iv = _primitive(iv_field, _OCTET_STRING)
    if content.tag == _CONSTRUCTED_0:
        ciphertext = b"".join(_primitive(segment, _OCTET_STRING) for segment in content.parts)
    else:
        ciphertext = _primitive(content, _PRIMITIVE_0)
    _ensure(len(iv) == _BLOCK_BYTES)
    _ensure(len(ciphertext) > 0 and len(ciphertext) % _BLOCK_BYTES == 0)
    return iv, ciphertext


def _parts(node: _Node, tag: int, count: int) -> list[_Node]:
    _ensure(node.tag == tag and len(node.parts) == count)
    return node.parts


def _primitive(node: _Node, tag: int) -> bytes:
    _ensure(node.tag == tag)
    return node.value


def _ensure(holds: bool) -> None:
    if not holds:
        raise _Malformed


# --- BER, X.690 §8.1 -------------------------------------------------------------------------------------------


class _Reader:
    """Reads elements off the front of one buffer, within fixed depth and count."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._nodes = 0

    def read_all(self) -> _Node:
        """Read exactly one element, with nothing after it."""
        node = self._read(len(self._data), 1)
        _ensure(self._at == len(self._data))
        return node

    def _read(self, end: int, depth: int) -> _Node:
        self._nodes += 1
        _ensure(depth <= _MAX_DEPTH and self._nodes <= _MAX_NODES)
        tag = self._byte(end)
        _ensure(tag & 0x1F != 0x1F and tag != 0)  # Multi-byte tags and stray end-of-contents occur nowhere here.
        length = self._length(end)
        if length is None:
            _ensure(bool(tag & _CONSTRUCTED))
            return _Node(tag, b"", self._parts_until_end_of_contents(end, depth))
        stop = self._at + length
        _ensure(stop <= end)
        if tag & _CONSTRUCTED:
            parts = []
            while self._at < stop:
                parts.append(self._read(stop, depth + 1))
            return _Node(tag, b"", parts)
        value = self._data[self._at : stop]
        self._at = stop
        return _Node(tag, value, [])

    def _parts_until_end_of_contents(self, end: int, depth: int) -> list[_Node]:
        parts = []
        while self._data[self._at : min(self._at + 2, end)] != b"\x00\x00":
            parts.append(self._read(end, depth + 1))
        self._at += 2
        return parts

    def _length(self, end: int) -> int | None:
        first = self._byte(end)
        if first < _INDEFINITE:
            return first
        if first == _INDEFINITE:
            return None
        count = first & 0x7F
        _ensure(count <= 4)
        length = 0
        for _ in range(count):
            length = length << 8 | self._byte(end)
        return length

    def _byte(self, end: int) -> int:
        _ensure(self._at < end)
        self._at += 1
        return self._data[self._at - 1]
