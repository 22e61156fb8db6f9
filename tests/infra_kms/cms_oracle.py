"""Reading CMS EnvelopedData with other people's code: asn1crypto for the structure, cryptography for the ciphers."""

from __future__ import annotations

from typing import Any

from asn1crypto import cms
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7


def enveloped(data: bytes) -> Any:
    """Return asn1crypto's EnvelopedData, read strictly."""
    info = cms.ContentInfo.load(data, strict=True)
    assert info["content_type"].native == "enveloped_data"
    return info["content"]


def open_cms(data: bytes, key: rsa.RSAPrivateKey) -> bytes:
    """Open a CiphertextForRecipient."""
    content = enveloped(data)
    wrapped = content["recipient_infos"][0].chosen["encrypted_key"].native
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label=None)
    content_key = key.decrypt(wrapped, oaep)
    encrypted = content["encrypted_content_info"]
    iv = encrypted["content_encryption_algorithm"]["parameters"].native
    decryptor = Cipher(algorithms.AES256(content_key), modes.CBC(iv)).decryptor()
    padded = decryptor.update(encrypted["encrypted_content"].native) + decryptor.finalize()
    unpadder = PKCS7(128).unpadder()
    return unpadder.update(padded) + unpadder.finalize()
