"""A small image with every kind of section, and the real one."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infra.eif.build import Plan, build
from infra.eif.fetch import CACHE, PackageCache
from infra.eif.pins import read_locks
from infra.eif.signature import Signer
from infra.eif.writer import Contents
from mrgc.errors import ConfigError

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


@pytest.fixture(scope="session")
def cache() -> PackageCache:
    """Return the fetched packages of the image; without them there is nothing to test here."""
    packages = PackageCache(CACHE, mirrors={})
    try:
        locked = read_locks()
        for pin in (*locked.debian.values(), *locked.wheels.values()):
            packages.load(pin)
    except ConfigError as error:
        if os.environ.get("MRGC_REQUIRE_VM") == "1":
            raise
        pytest.skip(f"the image's packages are not in .cache/eif (make image fetches them): {error}")
    return packages


@pytest.fixture(scope="session")
def built(cache: PackageCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the image of a Nitro Enclave and return the folder with its three files."""
    out = tmp_path_factory.mktemp("image")
    build(Plan(), cache, out=out)
    return out
