"""The public key of a document: AWS signs it, but whoever runs an enclave chooses its bytes."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fuzz.target import VECTORS, Target
from mrgc.attest import verify
from mrgc.errors import PublicKeyError


def check(data: bytes) -> bool:
    """Read one SubjectPublicKeyInfo."""
    try:
        # The reader has no public name: verification signs for everything else that reaches it.
        key = verify._rsa_key(data)
    except PublicKeyError:
        return False
    assert key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == data
    assert 2_048 <= key.key_size <= 4_096
    return True


def seeds() -> dict[str, bytes]:
    """RSA keys of several lengths (of no known factors, and of no use), and a key of another kind."""
    rsa = {f"rsa-{bits}": _rsa(bits) for bits in (1_024, 2_048, 4_096, 8_192)}
    root = x509.load_pem_x509_certificate((VECTORS / "root" / "aws-nitro-root-g1.pem").read_bytes())
    return rsa | {
        "p-384": root.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "cut": rsa["rsa-2048"][:-1],
        "trailing": rsa["rsa-2048"] + b"\x00",
        "long-form-length": rsa["rsa-1024"][:1] + b"\x83\x00" + rsa["rsa-1024"][2:],
        "nothing": b"",
    }


def _rsa(bits: int) -> bytes:
    numbers = RSAPublicNumbers(e=65_537, n=(1 << bits) - 159)
    return numbers.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


TARGET = Target(check, seeds)
