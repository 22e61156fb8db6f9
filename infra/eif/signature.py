"""The signature of an enclave image: who vouches for its PCR0, and what PCR8 is made of.

The section is CBOR: an array whose first element is {"signing_certificate": PEM, "signature": COSE_Sign1} over the
payload {"register_index": 0, "register_value": PCR0}; every byte string in it is an array of integers, because that
is how serde writes a Vec<u8> (aws-nitro-enclaves-image-format, src/defs/mod.rs). Called by `infra.eif.reader` and
`infra.eif.writer`. May import: the standard library, cbor2, cryptography, mrgc.attest.cbor, mrgc.errors.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import cbor2
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from mrgc.attest import cbor
from mrgc.errors import AttestationError, ConfigError, FormatError

_TAG_18: Final = 0xD2  # RFC 9052 §4.2; nitro-cli writes it without

_CURVES: Final[dict[int, tuple[type[ec.EllipticCurve], type[hashes.HashAlgorithm]]]] = {
    -7: (ec.SECP256R1, hashes.SHA256),
    -35: (ec.SECP384R1, hashes.SHA384),
    -36: (ec.SECP521R1, hashes.SHA512),
}


class Signer(NamedTuple):
    """A key and the certificate that names it."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def __repr__(self) -> str:
        return f"Signer({self.certificate.subject.rfc4514_string()})"


def sign(pcr0: bytes, signer: Signer) -> bytes:
    """Return the signature section for an image with this PCR0.

    The signature is RFC 6979's: the same image, key and certificate give the same bytes.

    Raises:
        ConfigError: the certificate is not this key's, or the curve is none of P-256, P-384 and P-521.
    """
    if signer.certificate.public_key() != signer.key.public_key():
        raise ConfigError("the certificate is not that of the signing key")
    algorithm = _algorithm_of(signer.key.curve)
    if algorithm is None:
        raise ConfigError(f"{signer.key.curve.name} signs no enclave image; P-384 does")
    payload = cbor2.dumps({"register_index": 0, "register_value": list(pcr0)})
    protected = cbor2.dumps({1: algorithm})
    digest = _CURVES[algorithm][1]()
    der = signer.key.sign(_to_sign(protected, payload), ec.ECDSA(digest, deterministic_signing=True))
    half = (signer.key.key_size + 7) // 8
    raw = b"".join(part.to_bytes(half, "big") for part in decode_dss_signature(der))
    sign1 = cbor2.dumps([protected, {}, payload, raw])
    pem = signer.certificate.public_bytes(Encoding.PEM)
    return cbor2.dumps([{"signing_certificate": list(pem), "signature": list(sign1)}])


def verify(section: bytes, pcr0: bytes) -> x509.Certificate:
    """Check that the section's certificate signed this PCR0, and return the certificate.

    The certificate itself vouches for nothing: whoever trusts it compares PCR8.

    Raises:
        FormatError: the section is not of the form above, or does not sign this image.
    """
    try:
        certificate_pem, sign1 = _outer(cbor.decode(section))
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        _verify(sign1, certificate, pcr0)
    except (AttestationError, KeyError, TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise FormatError("signature: not of the form that nitro-cli writes") from error
    except InvalidSignature as error:
        raise FormatError("signature: it is not this image that was signed") from error
    return certificate


def _outer(section: Any) -> tuple[bytes, bytes]:
    if type(section) is not list or not section:
        raise ValueError("not an array of signatures")
    first = section[0]
    return _from_integers(first["signing_certificate"]), _from_integers(first["signature"])


def _verify(sign1: bytes, certificate: x509.Certificate, pcr0: bytes) -> None:
    protected, _, payload, raw = cbor.decode(sign1[1:] if sign1[:1] == bytes([_TAG_18]) else sign1)
    algorithm = cbor.decode(protected)[1]
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or _algorithm_of(key.curve) != algorithm:
        raise ValueError("the algorithm is not that of the certificate's key")
    half = (key.key_size + 7) // 8
    if len(raw) != 2 * half:
        raise ValueError("the signature's length is not that of its curve")
    der = encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))
    key.verify(der, _to_sign(protected, payload), ec.ECDSA(_CURVES[algorithm][1]()))
    signed = cbor.decode(payload)
    if signed["register_index"] != 0 or _from_integers(signed["register_value"]) != pcr0:
        raise InvalidSignature


def _from_integers(value: Any) -> bytes:
    # bytes(n) of a number would make n zero bytes, as many as the file asks for.
    if type(value) is not list:
        raise ValueError("not an array of integers")
    return bytes(value)


def _algorithm_of(curve: ec.EllipticCurve) -> int | None:
    return next((algorithm for algorithm, (known, _) in _CURVES.items() if isinstance(curve, known)), None)


def _to_sign(protected: bytes, payload: bytes) -> bytes:
    return cbor2.dumps(["Signature1", protected, b"", payload])
