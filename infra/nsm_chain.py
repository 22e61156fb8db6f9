"""The certificate chain under which the software NSM signs: root → regional → zonal → instance → leaf.

Its shape (P-384, path lengths, key usages, lifetimes) is that of the chains in genuine Nitro documents, so the same
verifier code runs; only the root differs, and it is made by `make_root` and pinned nowhere. Called by
`infra.local_nsm`. May import: the standard library, cryptography. It does not make CRLs: Nitro's verification flow
does not read any.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

#: A certificate with less validity than this left is reissued; longer than any verifier accepts a document for.
RENEW_BEFORE_S: Final = 1800
#: Genuine leaf certificates are valid for 3 h 0 min 3 s: three seconds of clock difference are forgiven.
BACKDATE_S: Final = 3

_HOUR_S: Final = 3600


@dataclass(frozen=True, slots=True)
class Level:
    """What one certificate of the chain may do, and for how long."""

    common_name: str
    lifetime_s: int
    path_length: int | None
    is_ca: bool = True
    signs_data: bool = True
    is_committing: bool = False

    def key_usage(self) -> x509.KeyUsage:
        """Return the keyUsage extension of this level (RFC 5280 §4.2.1.3)."""
        return x509.KeyUsage(
            digital_signature=self.signs_data,
            content_commitment=self.is_committing,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=self.is_ca,
            crl_sign=self.is_ca and self.signs_data,
            encipher_only=False,
            decipher_only=False,
        )


ROOT: Final = Level("local.nitro-enclaves", 30 * 365 * 24 * _HOUR_S, None)


def levels(module_id: str, region: str) -> tuple[Level, ...]:
    """Return the levels below the root for one module, issuer first and leaf last; names as in genuine chains."""
    instance = module_id.rpartition("-")[0]
    return (
        Level(f"{region}.nitro-enclaves", 20 * 24 * _HOUR_S, 2),
        Level(f"zonal.{region}.nitro-enclaves", 6 * 24 * _HOUR_S, 1),
        Level(f"{instance}.{region}.nitro-enclaves", 24 * _HOUR_S, 0, signs_data=False),
        Level(f"{module_id}.{region}.aws", 3 * _HOUR_S, None, is_ca=False, is_committing=True),
    )


@dataclass(frozen=True, slots=True)
class Issuer:
    """A key with the certificate that names it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_root(now_s: float) -> Issuer:
    """Make a self-signed root, valid for 30 years like Nitro's own."""
    key = ec.generate_private_key(ec.SECP384R1())
    return Issuer(issue(ROOT, key.public_key(), issuer=None, signer=key, now_s=now_s), key)


def issue(
    level: Level,
    public_key: ec.EllipticCurvePublicKey,
    *,
    issuer: x509.Certificate | None,
    signer: ec.EllipticCurvePrivateKey,
    now_s: float,
) -> x509.Certificate:
    """Sign one certificate of `level` for `public_key`; `issuer` is None for a self-signed one."""
    subject = _name(level.common_name)
    not_before = datetime.fromtimestamp(int(now_s) - BACKDATE_S, UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_before + timedelta(seconds=level.lifetime_s + BACKDATE_S))
        .add_extension(x509.BasicConstraints(level.is_ca, level.path_length), critical=True)
        .add_extension(level.key_usage(), critical=level.is_ca)
    )
    if level.is_ca:
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    return builder.sign(signer, hashes.SHA384())


class SignerChain:
    """The living chain below one root: every certificate near its end is reissued for the same key.

    A reissued certificate keeps its subject and key, so those below it stay valid. Not safe for concurrent use:
    `infra.local_nsm.LocalNsm` holds its lock.
    """

    def __init__(self, root: Issuer, module_id: str, region: str) -> None:
        self._root = root
        self._levels = levels(module_id, region)
        self._keys = [ec.generate_private_key(ec.SECP384R1()) for _ in self._levels]
        self._certificates: list[x509.Certificate | None] = [None] * len(self._levels)

    @property
    def leaf_key(self) -> ec.EllipticCurvePrivateKey:
        """Return the key that signs documents."""
        return self._keys[-1]

    def at(self, now_s: float) -> tuple[bytes, list[bytes]]:
        """Return (leaf, cabundle) as DER, valid for at least `RENEW_BEFORE_S` after `now_s`; cabundle is root first."""
        issuer = self._root
        bundle = [self._root.certificate.public_bytes(Encoding.DER)]
        for index, (level, key) in enumerate(zip(self._levels, self._keys, strict=True)):
            certificate = self._certificates[index]
            if certificate is None or certificate.not_valid_after_utc.timestamp() - now_s < RENEW_BEFORE_S:
                certificate = issue(level, key.public_key(), issuer=issuer.certificate, signer=issuer.key, now_s=now_s)
                self._certificates[index] = certificate
            issuer = Issuer(certificate, key)
            bundle.append(certificate.public_bytes(Encoding.DER))
        return bundle[-1], bundle[:-1]


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "mrgc one-machine stack"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )
