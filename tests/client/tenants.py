"""The servers around a tenant, all real: a redis-server, the one-machine KMS as a process, a directory of results.

`Peer` plays the service: it takes sealed jobs from the stream, and seals results as the enclave would.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Final

import obstore
import redis
from obstore.store import LocalStore

from infra.kms_config import KmsConfig, Principal, write_config
from infra.local_nsm import create_pki
from infra.redis_server import RedisServer
from mrgc.client_settings import AwsAccess
from mrgc.policy import key_policy
from mrgc.tenant_kms import TenantKms, session
from mrgc.wire.sealed import (
    ResultDraft,
    SealedJob,
    StandaloneDraft,
    open_job,
    parse_job,
    seal_result,
    seal_standalone,
    standalone_context,
)
from tests.waiting import until

REPOSITORY: Final = Path(__file__).parents[2]
REGION: Final = "eu-west-1"
MODEL: Final = "all-minilm-l6-v2"
MANIFEST: Final = f"{MODEL}@sha256:{'ab' * 32}"
OK_BODY: Final = b'{"embeddings":[[0.25,-1.5]],"errors":[]}'


@dataclass(frozen=True)
class Kms:
    """A running one-machine KMS."""

    process: subprocess.Popen[bytes]
    endpoint: str
    ca: str
    principals: dict[str, Principal] = field(repr=False)
    #: Made once: a boto3 client takes a tenth of a second.
    made: dict[str, Any] = field(default_factory=dict, repr=False)

    def access(self, tenant: str) -> AwsAccess:
        """How a tenant reaches it."""
        access_key = f"AKIA{tenant.upper()}"
        return AwsAccess(
            access_key=access_key,
            secret_key=self.principals[access_key].secret,
            kms_endpoint=self.endpoint,
            ca_bundle=self.ca,
        )

    def key_of(self, tenant: str) -> str:
        """The ARN of a tenant's first key."""
        return str(self._once(f"key of {tenant}", lambda: self.create_key(tenant)))

    def client_of(self, tenant: str) -> TenantKms:
        """A client of that key for the test itself."""
        made = self._once(f"client of {tenant}", lambda: TenantKms(self.key_of(tenant), self.access(tenant)))
        assert isinstance(made, TenantKms)
        return made

    def create_key(self, tenant: str) -> str:
        """Create a key that the tenant itself may use, and return its ARN."""
        policy = key_policy(
            pcr0=b"\x01" * 48,
            tenant=tenant,
            tenant_principal=f"arn:aws:iam::444455556666:role/{tenant}",
            service_role="arn:aws:iam::111122223333:role/mrgc-worker",
        )
        made = session(self.access(tenant), region=REGION).client("kms", endpoint_url=self.endpoint, verify=self.ca)
        with contextlib.closing(made) as kms:
            return str(kms.create_key(Policy=json.dumps(policy))["KeyMetadata"]["Arn"])

    def _once(self, name: str, make: Callable[[], object]) -> object:
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    def stop(self) -> None:
        """Close what was made, and end the process."""
        for made in self.made.values():
            if isinstance(made, TenantKms):
                made.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)


def start_kms(directory: Path, tenants: tuple[str, ...]) -> Kms:
    """Start the KMS with one principal per tenant."""
    create_pki(directory / "nsm")
    principals = {
        f"AKIA{tenant.upper()}": Principal(f"arn:aws:iam::444455556666:role/{tenant}", secrets.token_hex(20))
        for tenant in tenants
    }
    write_config(
        directory / "kms.json",
        KmsConfig(directory / "state", directory / "nsm" / "root.pem", principals, regions=(REGION,)),
    )
    ready_file = directory / "ready.json"
    with (directory / "kms.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.local_kms", "--config", directory / "kms.json", "--ready-file", ready_file],
            cwd=REPOSITORY,
            stderr=log,
        )
    until(lambda: ready_file.exists() or process.poll() is not None, within_s=30, what="the kms listens")
    assert process.poll() is None, (directory / "kms.log").read_text()
    ready = json.loads(ready_file.read_text())
    return Kms(process, ready["endpoint"], ready["ca"], principals)


@dataclass(frozen=True)
class Tenant:
    """One tenant with a queue, a results folder and a state folder of its own for one test."""

    name: str
    key_arn: str
    kms: Kms
    server: RedisServer
    folder: Path

    @property
    def results(self) -> Path:
        """The directory store."""
        return self.folder / "results"

    def env(self, **changes: str) -> dict[str, str]:
        """Return the variables that the tenant exports."""
        access = self.kms.access(self.name)
        return {
            "MRGC_TENANT": self.name,
            "MRGC_KEY_ARN": self.key_arn,
            "MRGC_QUEUE_URL": self.server.url(),
            "MRGC_RESULTS_URL": f"file://{self.results}/",
            "MRGC_MODEL": MODEL,
            "MRGC_STATE": str(self.folder / f"state-{self.name}"),
            "AWS_ENDPOINT_URL_KMS": self.kms.endpoint,
            "AWS_CA_BUNDLE": self.kms.ca,
            "AWS_ACCESS_KEY_ID": access.access_key or "",
            "AWS_SECRET_ACCESS_KEY": access.secret_key or "",
        } | changes

    @property
    def peer(self) -> Peer:
        """The service, as this tenant's jobs meet it."""
        return Peer(self)


@dataclass(frozen=True)
class Peer:
    """The service's part of the protocol, with the data keys that the tenant itself may unwrap."""

    tenant: Tenant

    @contextlib.contextmanager
    def redis(self) -> Iterator[redis.Redis[bytes]]:
        """Connect to the tenant's queue."""
        with redis.Redis.from_url(self.tenant.server.url(), socket_timeout=10) as client:
            yield client

    def messages(self) -> list[dict[bytes, bytes]]:
        """Every message of the stream."""
        with self.redis() as client:
            return [fields for _, fields in client.xrange(f"q:{self.tenant.name}")]

    def jobs(self) -> list[SealedJob]:
        """Every job of the stream, in order."""
        return [parse_job(fields[b"job"]) for fields in self.messages()]

    def data_key(self, edk: bytes) -> bytearray:
        """Unwrap a data key as the enclave does, though without attestation."""
        kms = self.tenant.kms.client_of(self.tenant.name)
        return kms.decrypt(edk, {"mrgc:tenant": self.tenant.name, "mrgc:use": "job"})

    def opened(self, job: SealedJob) -> dict[str, Any]:
        """Open a job and return its payload."""
        payload: dict[str, Any] = json.loads(open_job(job, data_key=self.data_key(job.header.edk)))
        return payload

    def seal(self, job: SealedJob, body: bytes = OK_BODY, **changes: Any) -> bytes:
        """Seal a result of a job; `changes` are what a dishonest or another peer would put into its header."""
        return seal_result(draft_of(job)._replace(**changes), body, data_key=self.data_key(job.header.edk))

    def standalone(self, body: bytes, *, request_id: str = "request 1") -> bytes:
        """Seal an answer as the JSON protocol does for a bare ciphertext, under a data key of its own."""
        kms, name = self.tenant.kms.client_of(self.tenant.name), self.tenant.name
        made = kms.generate(standalone_context(name))
        draft = StandaloneDraft(name, self.tenant.key_arn, made.edk, request_id, created=1_795_000_000)
        return seal_standalone(draft, body, data_key=made.data_key)

    def put(self, job: SealedJob, data: bytes, *, suffix: str = "mrgc") -> Path:
        """Store bytes where the result of a job, or its hint, belongs: create-only."""
        header = job.header
        name = f"{header.tenant}/{header.job.hex()}/{job.request.hex()}.{suffix}"
        obstore.put(LocalStore(self.tenant.results), name, data, mode="create")
        return self.tenant.results / name

    def answer(self, job: SealedJob, body: bytes = OK_BODY, **changes: Any) -> Path:
        """Seal and store a result."""
        return self.put(job, self.seal(job, body, **changes))


def draft_of(job: SealedJob) -> ResultDraft:
    """The honest header of a job's result."""
    header = job.header
    return ResultDraft(
        tenant=header.tenant,
        job=header.job,
        key_arn=header.key_arn,
        edk=header.edk,
        context=header.context,
        request=job.request,
        model=MANIFEST,
        type="application/json",
        status="ok",
        tier=0,
        created=header.created + 1,
    )


def make_tenant(name: str, *, kms: Kms, server: RedisServer, folder: Path) -> Tenant:
    """Give a tenant an empty queue; `folder` holds its results and state."""
    (folder / "results").mkdir(exist_ok=True)
    with redis.Redis.from_url(server.url(), socket_timeout=10) as client:
        client.delete(f"q:{name}")
    return Tenant(name, kms.key_of(name), kms, server, folder)


def process_env(env: dict[str, str]) -> dict[str, str]:
    """The environment of a command: the test's own, and the tenant's variables."""
    return dict(os.environ) | env


@contextlib.contextmanager
def server_that_says(body: bytes, status: int = 200) -> Iterator[str]:
    """Answer every request with the same body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", "0")))
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the names that http.server calls

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
