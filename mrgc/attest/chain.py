"""The certificate chain of a document: from the caller's root, through the cabundle, to the leaf.

A general path builder is not needed and not wanted: the order is fixed (root, regional, zonal, instance, leaf), and
what web PKI forgives is refused here. AWS publishes no revocation check for this chain. Called by
`mrgc.attest.verify`. May import: the standard library, cryptography, mrgc.errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, SignatureAlgorithmOID

from mrgc.errors import ConfigError, UntrustedChain

#: AWS: Nitro Enclaves User Guide, "Verifying the root of trust": SHA-256 fingerprint of root G1.
AWS_ROOT_SHA256: Final = "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"

_UNDERSTOOD: Final = (x509.BasicConstraints, x509.KeyUsage)


@dataclass(frozen=True, slots=True)
class Root:
    """A trust anchor: one certificate, as DER. Made by `aws_root` or `load_root`."""

    der: bytes


def aws_root() -> Root:
    """Return AWS Nitro Enclaves Root-G1, the only root of production."""
    pem = resources.files("mrgc.attest").joinpath("roots", "aws-nitro-root-g1.pem").read_bytes()
    certificate = x509.load_pem_x509_certificate(pem)
    if certificate.fingerprint(hashes.SHA256()).hex() != AWS_ROOT_SHA256:
        raise ConfigError("the packaged Nitro root is damaged")
    return Root(certificate.public_bytes(Encoding.DER))


def load_root(pem: bytes) -> Root:
    """Return a root from PEM text, for documents of another PKI than AWS's.

    Raises:
        ConfigError: the text is not exactly one certificate.
    """
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except ValueError as err:
        raise ConfigError("the attestation root is not a PEM certificate") from err
    if len(certificates) != 1:
        raise ConfigError("the attestation root is not one certificate")
    return Root(certificates[0].public_bytes(Encoding.DER))


@dataclass(frozen=True, slots=True)
class Leaf:
    """The end of a verified chain."""

    public_key: ec.EllipticCurvePublicKey
    common_name: str


def verify_chain(cabundle: Sequence[bytes], certificate: bytes, *, root: Root, at: datetime) -> Leaf:
    """Verify root → … → leaf and return the leaf.

    Args:
        cabundle: DER certificates, the root first; at least one.
        certificate: the leaf, DER.
        root: the anchor; the bundle's first entry must be the same bytes.
        at: the time at which every certificate must be valid; aware.

    Raises:
        UntrustedChain: any link, constraint or validity period does not hold.
    """
    if cabundle[0] != root.der:
        raise UntrustedChain("the chain does not begin at the pinned root")
    if len({*cabundle, certificate}) != len(cabundle) + 1:  # RFC 5280 §6.1
        raise UntrustedChain("a certificate is in the chain twice")
    try:
        # The anchor is the caller's copy, not the sender's.
        chain = [x509.load_der_x509_certificate(der) for der in (root.der, *cabundle[1:], certificate)]
        for depth, authority in enumerate(chain[:-1]):
            _ensure_authority(authority, below=len(chain) - 2 - depth)
            chain[depth + 1].verify_directly_issued_by(authority)
        for each in chain:
            _ensure_profile(each, at)
        return _leaf(chain[-1])
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError) as err:
        raise UntrustedChain("a certificate is malformed, or not issued by the one before it") from err
    except (
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
        x509.InvalidVersion,
        x509.UnsupportedGeneralNameType,
    ) as err:
        raise UntrustedChain("a certificate lacks an extension, or has one that cannot be read") from err


def validity(certificates: Sequence[bytes]) -> tuple[datetime, datetime]:
    """Return the first and the last moment at which every certificate (DER) of a verified chain is valid."""
    parsed = [x509.load_der_x509_certificate(der) for der in certificates]
    return max(each.not_valid_before_utc for each in parsed), min(each.not_valid_after_utc for each in parsed)


def _ensure_profile(certificate: x509.Certificate, at: datetime) -> None:
    """Hold what every certificate of the chain must be: v3, P-384, signed with SHA-384, valid at `at`."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise UntrustedChain("a certificate's key is not P-384")
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA384:
        raise UntrustedChain("a certificate is not signed with ECDSA and SHA-384")
    if certificate.version is not x509.Version.v3:
        raise UntrustedChain("a certificate is not X.509 version 3")
    if any(each.critical and not isinstance(each.value, _UNDERSTOOD) for each in certificate.extensions):
        raise UntrustedChain("a certificate has a critical extension that is not understood")  # RFC 5280 §4.2
    if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
        raise UntrustedChain("a certificate is not valid at this time")


def _ensure_authority(certificate: x509.Certificate, *, below: int) -> None:
    """Hold what an issuer must be, with `below` further issuers under it (RFC 5280 §4.2.1.9, §4.2.1.3)."""
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    if not (constraints.ca and usage.key_cert_sign):
        raise UntrustedChain("an issuer may not issue certificates")
    if constraints.path_length is not None and below > constraints.path_length:
        raise UntrustedChain("an issuer's path length is exceeded")


def _leaf(certificate: x509.Certificate) -> Leaf:
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    if constraints.ca or usage.key_cert_sign or not usage.digital_signature:
        raise UntrustedChain("the leaf is not a certificate for signing documents")
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    key = certificate.public_key()
    if len(names) != 1 or not isinstance(names[0].value, str) or not isinstance(key, ec.EllipticCurvePublicKey):
        raise UntrustedChain("the leaf has no single common name")
    return Leaf(key, names[0].value)
