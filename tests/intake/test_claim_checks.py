"""Jobs that travel as claim checks, through a bucket of moto's S3."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from mrgc.wire import strict_cbor
from tests.intake.conftest import Host, StartHost
from tests.intake.sealing import seal
from tests.waiting import until

BUCKET = "acme-jobs"


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """The tenant's bucket, reached with credentials from the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_REGION", "us-east-1")
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket=BUCKET)
        yield client
    server.stop()


def send_reference(host: Host, job: bytes, **changes: Any) -> None:
    """Append a claim check of a job; `changes` make it wrong."""
    ref = {"url": f"s3://{BUCKET}/jobs/1", "sha256": hashlib.sha256(job).digest(), "bytes": len(job)}
    host.client.xadd("q:acme", {"ref": strict_cbor.encode(ref | changes)})


def test_a_claim_check_is_served_like_its_job(start_host: StartHost, bucket: Any) -> None:
    """A job too long for a message is fetched from the tenant's bucket, checked and served."""
    host = start_host(s3_endpoint=bucket.meta.endpoint_url)
    job = seal(payload=b"x" * 2_000_000)
    bucket.put_object(Bucket=BUCKET, Key="jobs/1", Body=job)
    send_reference(host, job)
    host.wait_stored(job)


def test_a_claim_check_that_lies_is_dead_lettered(start_host: StartHost, bucket: Any) -> None:
    """Another hash, another length, no object, or another bucket: body_missing, and the reference is kept."""
    host = start_host(s3_endpoint=bucket.meta.endpoint_url)
    job = seal()
    bucket.put_object(Bucket=BUCKET, Key="jobs/1", Body=job)
    for changes in (
        {"sha256": bytes(32)},
        {"bytes": len(job) - 1},
        {"bytes": len(job) + 1},
        {"url": f"s3://{BUCKET}/jobs/2"},
        {"url": "s3://globex-jobs/jobs/1"},
    ):
        send_reference(host, job, **changes)
    until(lambda: len(host.dead_letters()) == 5, within_s=10, what="all five are dead-lettered")
    assert {reason for reason, _ in host.dead_letters()} == {"body_missing"}
    assert all(b"ref" in letter for _, letter in host.client.xrange("dead:acme"))
    send_reference(host, job)
    host.wait_stored(job)
