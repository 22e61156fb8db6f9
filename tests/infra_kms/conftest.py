"""The one-machine KMS as a real process, its principals, and an enclave that attests to it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import boto3
import pytest
from botocore.config import Config
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from infra.kms_config import KmsConfig, Principal, write_config
from infra.local_nsm import LocalNsm, create_pki
from mrgc.policy import key_policy
from tests.waiting import until

REGION: Final = "eu-west-1"
ACME: Final = "arn:aws:iam::111122223333:user/acme"
OTHER: Final = "arn:aws:iam::444455556666:role/other"
SERVICE: Final = "arn:aws:iam::777788889999:role/mrgc-worker"
PCR0: Final = b"\xa5" * 48
PCRS: Final = {0: PCR0, 1: b"\xb6" * 48, 2: b"\xc7" * 48}
JOB: Final = {"mrgc:tenant": "acme", "mrgc:use": "job"}
PRINCIPALS: Final = {
    "AKIAACME": Principal(ACME, "acme-secret"),
    "AKIAOTHER": Principal(OTHER, "other-secret"),
    "ASIASERVICE": Principal(SERVICE, "service-secret", session_token="a-token"),
}
ACCESS_KEYS: Final = {each.arn: access_key for access_key, each in PRINCIPALS.items()}


@dataclass
class Kms:
    """One server process and how to reach it."""

    directory: Path
    process: subprocess.Popen[bytes]
    ready: dict[str, Any]
    _clients: dict[str, Any] = field(default_factory=dict)

    def client(self, arn: str, **changes: Any) -> Any:
        """Return a boto3 client that signs as one of `PRINCIPALS`; without changes, always the same one."""
        if not changes and arn in self._clients:
            return self._clients[arn]
        access_key = ACCESS_KEYS[arn]
        settings = {
            "region_name": REGION,
            "endpoint_url": self.ready["endpoint"],
            "verify": self.ready["ca"],
            "aws_access_key_id": access_key,
            "aws_secret_access_key": PRINCIPALS[access_key].secret,
            "aws_session_token": PRINCIPALS[access_key].session_token,
            "config": Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=10),
        }
        client = boto3.Session().client("kms", **settings | changes)
        if not changes:
            self._clients[arn] = client
        return client

    def tenant_key(self, **changes: Any) -> str:
        """Create a key of acme's with the generated policy; return its ARN."""
        named = {"pcr0": PCR0, "tenant": "acme", "tenant_principal": ACME, "service_role": SERVICE} | changes
        policy = json.dumps(key_policy(**named))
        arn: str = self.client(ACME).create_key(Policy=policy)["KeyMetadata"]["Arn"]
        return arn


@dataclass
class Enclave:
    """What attests: an NSM and the RSA key in its documents."""

    nsm: LocalNsm
    key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048), repr=False)

    def document(self, **changes: bytes | None) -> bytes:
        spki = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        fields: dict[str, bytes | None] = {"public_key": spki, "user_data": None, "nonce": None}
        return self.nsm.attest(**fields | changes)

    def recipient(self, document: bytes | None = None) -> dict[str, Any]:
        """Return the Recipient member of a KMS call."""
        data = self.document() if document is None else document
        return {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": data}


@contextmanager
def serving(directory: Path, config: KmsConfig) -> Iterator[Kms]:
    """Run the server on `config` until the block ends."""
    write_config(directory / "kms.json", config)
    ready_file = directory / "ready.json"
    ready_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "infra.local_kms", "--config", str(directory / "kms.json")]
    with (directory / "kms.log").open("ab") as log:
        process = subprocess.Popen([*command, "--ready-file", str(ready_file)], stderr=log)
    try:
        until(ready_file.exists, within_s=30, what="the KMS listens")
        yield Kms(directory, process, json.loads(ready_file.read_text()))
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an NSM root."""
    directory: Path = tmp_path_factory.mktemp("nsm")
    create_pki(directory)
    return directory


@pytest.fixture
def config(tmp_path: Path, pki: Path) -> KmsConfig:
    """Return a configuration with a state folder of its own."""
    return KmsConfig(tmp_path / "state", pki / "root.pem", PRINCIPALS, regions=(REGION, "us-east-1"))


@pytest.fixture(scope="session")
def kms(tmp_path_factory: pytest.TempPathFactory, pki: Path) -> Iterator[Kms]:
    """Return a running server, shared by all tests: every test makes its own keys."""
    directory = tmp_path_factory.mktemp("kms")
    shared = KmsConfig(directory / "state", pki / "root.pem", PRINCIPALS, regions=(REGION, "us-east-1"))
    with serving(directory, shared) as server:
        yield server


@pytest.fixture(scope="session")
def enclave(pki: Path) -> Enclave:
    """Return the enclave that the generated policies name."""
    return Enclave(LocalNsm(pki, PCRS))
