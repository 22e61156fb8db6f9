"""A real KMS process and a real enclave behind a unix socket, for tests of the enclave and of its agent."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from ssl import create_default_context
from typing import Any, Protocol, Self

import boto3
from botocore.config import Config

from enclave.connection import Limits
from enclave.enclave_app import Enclave
from enclave.nsm import Nsm
from infra.kms_config import KmsConfig, Principal, write_config
from mrgc.errors import MrgcError
from mrgc.policy import key_policy
from mrgc.wire import enclave_protocol, frames
from mrgc.wire.addresses import UnixAddress, connect, listen
from mrgc.wire.enclave_protocol import AttestRequest, Credentials, Hello, Op, Opened, SealRequest
from mrgc.wire.frames import Frame
from mrgc.wire.sealed import JobDraft, seal_job
from mrgc.wire.strict_cbor import Buffer
from tests.waiting import until

REGION = "eu-west-1"
PCR0 = bytes(range(48))
PCRS = {0: PCR0, 1: b"\x11" * 48, 2: b"\x22" * 48}
SERVICE_ROLE = "arn:aws:iam::111122223333:role/mrgc-worker"
TENANT_ARN = "arn:aws:iam::444455556666:user/{}"
TOKEN = b"\x07" * 32
MODEL = "all-minilm-l6-v2@sha256:" + "ab" * 32
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class DataKey:
    """A data key as a tenant holds it."""

    tenant: str
    key_arn: str
    context: dict[str, str]
    plaintext: bytes
    edk: bytes

    def job(self, plaintext: bytes = b'{"inputs": ["x"]}', **changes: Any) -> bytes:
        """Seal one job under this key."""
        now = int(time.time())
        fields: dict[str, Any] = {
            "tenant": self.tenant,
            "job": os.urandom(16),
            "key_arn": self.key_arn,
            "edk": self.edk,
            "context": self.context,
            "model": "all-minilm-l6-v2",
            "type": "application/json",
            "items": 1,
            "created": now,
            "expires": now + 3_600,
        }
        return seal_job(JobDraft(**(fields | changes)), plaintext, data_key=self.plaintext)


class Kms:
    """A `python -m infra.local_kms` of our own."""

    def __init__(self, directory: Path, nsm: Path) -> None:
        self._config = directory / "kms.json"
        self._ready_file = directory / "ready.json"
        self.ca = directory / "kms" / "ca.pem"
        principals = {
            "AKSERVICE": Principal(SERVICE_ROLE, "service-secret", "service-session"),
            "AKACME": Principal(TENANT_ARN.format("acme"), "acme-secret"),
            "AKGLOBEX": Principal(TENANT_ARN.format("globex"), "globex-secret"),
        }
        write_config(self._config, KmsConfig(directory / "kms", nsm / "root.pem", principals, (REGION, "us-east-1")))
        command = [sys.executable, "-m", "infra.local_kms", "--config", str(self._config)]
        self._log = (directory / "kms.log").open("wb")
        self._process = subprocess.Popen(
            [*command, "--ready-file", str(self._ready_file)], cwd=REPOSITORY, stdout=self._log, stderr=self._log
        )
        until(self._ready_file.exists, within_s=30, what="the KMS to listen")
        self.port: int = json.loads(self._ready_file.read_text())["port"]

    def stop(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait(10)
        self._log.close()

    def dial(self, _host: str, timeout_s: float) -> socket.socket:
        """Reach this KMS whatever the host; TLS above still demands the host's name."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s)

    def client(self, who: str) -> Any:
        """Return a KMS client of a tenant."""
        return boto3.client(
            "kms",
            region_name=REGION,
            endpoint_url=f"https://127.0.0.1:{self.port}",
            verify=str(self.ca),
            aws_access_key_id=f"AK{who.upper()}",
            aws_secret_access_key=f"{who}-secret",
            config=Config(retries={"total_max_attempts": 1}),
        )

    def create_key(self, tenant: str = "acme", *, pcr0: bytes = PCR0, json_protocol: bool = False) -> str:
        """Create a tenant's key that admits one image."""
        policy = key_policy(
            pcr0=pcr0,
            tenant=tenant,
            tenant_principal=TENANT_ARN.format(tenant),
            service_role=SERVICE_ROLE,
            json_protocol=json_protocol,
        )
        arn: str = self.client(tenant).create_key(Policy=json.dumps(policy))["KeyMetadata"]["Arn"]
        return arn

    def data_key(
        self, tenant: str = "acme", *, key_arn: str | None = None, context: dict[str, str] | None = None
    ) -> DataKey:
        """Generate a tenant's data key under a key of its own."""
        arn = key_arn or self.create_key(tenant)
        agreed = context or {"mrgc:tenant": tenant, "mrgc:use": "job"}
        made = self.client(tenant).generate_data_key(KeyId=arn, KeySpec="AES_256", EncryptionContext=agreed)
        return DataKey(tenant, arn, agreed, made["Plaintext"], made["CiphertextBlob"])

    def decrypts(self) -> int:
        """Return how many Decrypt calls were made."""
        return self.stats().get("Decrypt", 0)

    def stats(self) -> dict[str, int]:
        """Return the calls by operation, and the refusals by operation and error."""
        url = f"https://127.0.0.1:{self.port}/stats"
        with urllib.request.urlopen(url, context=create_default_context(cafile=str(self.ca))) as answer:
            counts: dict[str, int] = json.load(answer)
            return counts


class Caller:
    """Speaks the enclave's protocol over one connection."""

    def __init__(self, path: Path) -> None:
        self.sock = connect(UnixAddress(path), timeout_s=20)
        self._id = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def ask(self, request: Sequence[Buffer]) -> Frame:
        """Send the buffers of one frame and read the answer."""
        frames.send(self.sock, request)
        return frames.recv(self.sock)

    def code(self, request: Sequence[Buffer]) -> str | None:
        """Send a request; return the code of its answer, None for success."""
        code = self.ask(request).header.get("code")
        return None if code is None else str(code)

    def hello(self, token: bytes = TOKEN, *, json_protocol: bool = False) -> str | None:
        """Say hello; return the code."""
        return self.code(enclave_protocol.hello_request(1, Hello(token, json_protocol)))

    def credentials(self, *, expires: int | None = None) -> str | None:
        """Push the service role's credentials; return the code."""
        until_s = expires if expires is not None else int(time.time()) + 3_600
        pushed = Credentials("AKSERVICE", "service-secret", "service-session", until_s)
        return self.code(enclave_protocol.credentials_request(2, pushed))

    def open(self, jobs: Sequence[Buffer]) -> list[Opened | MrgcError]:
        """Open sealed jobs."""
        return enclave_protocol.parse_opened(self.ask(enclave_protocol.open_batch_request(3, jobs)), len(jobs))

    def open_codes(self, jobs: Sequence[Buffer]) -> list[str]:
        """Open sealed jobs; return `ok` or the code of each."""
        return [o.code if isinstance(o, MrgcError) else "ok" for o in self.open(jobs)]

    def open_one(self, job: Buffer) -> Opened:
        """Open one sealed job that must open."""
        (outcome,) = self.open([job])
        assert isinstance(outcome, Opened), outcome
        return outcome

    def seal(self, results: Sequence[SealRequest]) -> list[memoryview | MrgcError]:
        """Seal results."""
        return enclave_protocol.parse_sealed(self.ask(enclave_protocol.seal_batch_request(4, results)), len(results))

    def attest(self, request: AttestRequest) -> bytes:
        """Ask for a document."""
        (document,) = self.ask(enclave_protocol.attest_request(5, request)).blobs
        return bytes(document)

    def health(self) -> enclave_protocol.Health:
        """Ask for health."""
        return enclave_protocol.parse_health(self.ask(enclave_protocol.plain_request(6, Op.HEALTH)))

    def metrics(self) -> dict[str, int]:
        """Ask for the counters."""
        return enclave_protocol.parse_metrics(self.ask(enclave_protocol.plain_request(7, Op.METRICS)))

    def is_closed(self) -> bool:
        """Tell whether the enclave has ended this connection."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True


class KmsPeer(Protocol):
    """A KMS that an enclave can be led to: the real one, or one that lies."""

    @property
    def ca(self) -> Path:
        """Return the CA of its certificate."""

    def dial(self, host: str, timeout_s: float, /) -> socket.socket:
        """Reach it."""


class RunningEnclave:
    """The product's enclave, served from a thread of this process."""

    def __init__(self, path: Path, nsm: Nsm, kms: KmsPeer, *, limits: Limits | None = None) -> None:
        self.path = path
        self.inner = Enclave(nsm, kms.dial, str(kms.ca), limits=limits)
        listener = listen(UnixAddress(path), backlog=64)
        self._thread = threading.Thread(target=self.inner.serve, args=(listener,))
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop serving; more than once is harmless."""
        self.inner.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def caller(self) -> Caller:
        """Connect without saying anything."""
        return Caller(self.path)

    @contextlib.contextmanager
    def serving(self) -> Iterator[Caller]:
        """Connect as an engine, and as the agent before it: token and credentials are given."""
        with self.caller() as caller:
            assert caller.hello() is None
            assert caller.credentials() is None
            yield caller


def seal_request(opened: Opened, job: Buffer, body: bytes = b'{"embeddings": []}', **changes: Any) -> SealRequest:
    """Build the request to seal a result of an opened job."""
    aad = bytes(job)[: 12 + int.from_bytes(bytes(job[6:8]), "big")]
    fields = {"status": "ok", "model": MODEL, "type": "application/json", "aad": aad, "body": body}
    return SealRequest(**({"request": opened.request, "ticket": opened.ticket} | fields | changes))
