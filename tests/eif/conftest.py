"""A small image with every kind of section, signed and unsigned."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infra.eif.signature import Signer
from infra.eif.writer import Contents

CONTENTS: Final = Contents(
    kernel=b"kernel" * 100,
    command_line="console=ttyS0 quiet",
    ramdisks=(b"init" * 50, b"application" * 70),
    metadata={"ImageName": "small", "ImageVersion": "1"},
    memory_bytes=256 << 20,
    cpus=2,
)


def make_signer(curve: ec.EllipticCurve) -> Signer:
    """Return a key on this curve with a certificate of its own."""
    key = ec.generate_private_key(curve)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "release")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    return Signer(key, builder.sign(key, hashes.SHA384()))


@pytest.fixture(scope="session")
def contents() -> Contents:
    """Return the contents of a small image."""
    return CONTENTS


@pytest.fixture(scope="session")
def signer() -> Signer:
    """Return a signer on the curve that nitro-cli recommends."""
    return make_signer(ec.SECP384R1())
