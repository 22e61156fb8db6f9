"""CMS EnvelopedData in BER, as KMS answers: what is accepted has the fields and the padding that other readers see."""

from __future__ import annotations

from asn1crypto import cms as oracle
from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from enclave import cms
from fuzz import ber
from fuzz.target import VECTORS, Target
from mrgc.errors import AuthenticationError

_FOLDER = VECTORS / "kms-cms"
_CONTENT_KEY = bytes(32)
_PRIVATE_KEY = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)


def check(data: bytes) -> bool:
    """Read one structure, have others read it, and open it under a private key and under a content key."""
    try:
        envelope = cms.parse_enveloped(data)
    except AuthenticationError:
        return False
    assert _oracle_fields(data) in (envelope, None)
    # Nobody wrapped anything under a key that was just made.
    assert not _opens(data)
    # What follows the unwrapping has no public name, and behind RSA no mutant would reach it.
    try:
        plaintext = cms._decrypt_cbc(_CONTENT_KEY, envelope)
    except AuthenticationError:
        plaintext = None
    assert plaintext == _oracle_plaintext(envelope)
    return True


def _opens(data: bytes) -> bool:
    try:
        cms.open_enveloped(data, private_key=_PRIVATE_KEY)
    except AuthenticationError:
        return False
    return True


def _oracle_fields(data: bytes) -> cms.EnvelopedData | None:
    try:
        enveloped = oracle.ContentInfo.load(data, strict=True)["content"]
        encrypted = enveloped["encrypted_content_info"]
        return cms.EnvelopedData(
            enveloped["recipient_infos"][0].chosen["encrypted_key"].native,
            encrypted["content_encryption_algorithm"]["parameters"].native,
            encrypted["encrypted_content"].native,
        )
    except ValueError:
        return None  # asn1crypto does not read constructed content of definite length, which BER allows


def _oracle_plaintext(envelope: cms.EnvelopedData) -> bytes | None:
    decryptor = Cipher(algorithms.AES256(_CONTENT_KEY), modes.CBC(envelope.iv)).decryptor()
    padded = decryptor.update(envelope.ciphertext) + decryptor.finalize()
    unpadder = padding.PKCS7(128).unpadder()
    try:
        return unpadder.update(padded) + unpadder.finalize()
    except ValueError:
        return None


def seeds() -> dict[str, bytes]:
    """AWS's two published answers, and structures that are not KMS's."""
    indefinite = (_FOLDER / "kms-envelopeddata-indefinite.ber").read_bytes()
    primitive = (_FOLDER / "kms-envelopeddata-primitive-content.ber").read_bytes()
    iv_at = indefinite.index(bytes.fromhex("60864801650304012a0410")) + 11
    return {
        "aws-indefinite": indefinite,
        "aws-primitive": primitive,
        "well-padded": indefinite[:iv_at] + _iv_for_padding(indefinite) + indefinite[iv_at + 16 :],
        "cut": indefinite[:-2],
        "trailing": primitive + b"\x00",
        "deep": b"\x30\x80" * 40,
        "wide": b"\x30\x80" + b"\x05\x00" * 300 + b"\x00\x00",
        "huge-length": bytes.fromhex("3084ffffffff"),
        "long-tag": bytes.fromhex("3f8101000000"),
        "nothing": b"",
    }


def _iv_for_padding(data: bytes) -> bytes:
    """Return an IV under which the content, if it is one block, ends in valid padding under the content key."""
    envelope = cms.parse_enveloped(data)
    decryptor = Cipher(algorithms.AES256(_CONTENT_KEY), modes.ECB()).decryptor()  # noqa: S305
    return bytes(byte ^ 0x10 for byte in decryptor.update(envelope.ciphertext[:16]))


TARGET = Target(check, seeds, ber.mutation, max_bytes=1_024)
