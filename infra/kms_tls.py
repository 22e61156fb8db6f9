"""TLS of the one-machine KMS: an own CA that lasts, and a server certificate made afresh at every start.

The certificate names `localhost`, 127.0.0.1 and `kms.<region>.amazonaws.com`, so that clients verify host names
exactly as they do against AWS. Called by `infra.local_kms`. May import: the standard library, cryptography, infra.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from infra.durable_file import replace_file
from mrgc.errors import ConfigError

_LIFETIME: Final = timedelta(days=3650)
_CA_NAME: Final = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mrgc one-machine KMS CA")])
_CA_USAGE: Final = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def server_context(directory: Path, regions: Sequence[str]) -> ssl.SSLContext:
    """Return the server's context; leaves the CA that clients need at `directory/ca.pem`.

    Raises:
        ConfigError: the CA's files are damaged.
    """
    ca_key, ca = _authority(directory)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _server_certificate(regions, key.public_key(), ca=ca, ca_key=ca_key)
    server_file = directory / "server.pem"
    replace_file(server_file, _pem(key) + certificate.public_bytes(Encoding.PEM))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(server_file)
    return context


def _authority(directory: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Load the CA, or make it at the first start; clients keep trusting a restarted server."""
    key_file, certificate_file = directory / "ca-key.pem", directory / "ca.pem"
    if not key_file.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _authority_certificate(key)
        replace_file(key_file, _pem(key) + certificate.public_bytes(Encoding.PEM))
    pem = key_file.read_bytes()
    try:
        loaded = load_pem_private_key(pem, None)
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError as err:
        raise ConfigError("the CA of the one-machine KMS is damaged") from err
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise ConfigError("the CA of the one-machine KMS is damaged")
    replace_file(certificate_file, certificate.public_bytes(Encoding.PEM), mode=0o644)
    return loaded, certificate


def _authority_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    return (
        _builder(_CA_NAME, key.public_key(), key.public_key())
        .add_extension(x509.BasicConstraints(True, 0), critical=True)
        .add_extension(_CA_USAGE, critical=True)
        .sign(key, hashes.SHA256())
    )


def _server_certificate(
    regions: Sequence[str],
    public_key: ec.EllipticCurvePublicKey,
    *,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    names = ["localhost", *(f"kms.{region}.amazonaws.com" for region in regions)]
    alternatives = [*map(x509.DNSName, names), x509.IPAddress(IPv4Address("127.0.0.1"))]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mrgc one-machine KMS")])
    return (
        _builder(subject, public_key, ca_key.public_key())
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .issuer_name(ca.subject)
        .sign(ca_key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, issuer_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )
    return builder.issuer_name(subject) if key == issuer_key else builder


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
