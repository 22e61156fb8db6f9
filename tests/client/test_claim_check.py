"""Jobs too long for a queue message, and results in a bucket: over the S3 protocol, to moto's server on loopback."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from mrgc.client import Client
from mrgc.errors import ConfigError, StoreUnavailable
from mrgc.job_queue import MAX_INLINE_BYTES
from mrgc.payloads import JobOptions
from mrgc.result_store import ResultStore
from mrgc.waiting import State
from mrgc.wire import strict_cbor
from mrgc.wire.sealed import parse_job
from tests.client.tenants import MODEL, REGION, Tenant, server_that_says

#: Not the name of another module's bucket: every moto server of one process shows the same buckets.
BUCKET = "acme-uploads"


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    """An S3 server."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str) -> Iterator[Any]:
    """A client of it, with an empty bucket."""
    with closing(
        boto3.client(
            "s3", endpoint_url=s3_endpoint, region_name=REGION, aws_access_key_id="x", aws_secret_access_key="x"
        )
    ) as made:
        made.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        yield made
        for item in made.list_objects_v2(Bucket=BUCKET).get("Contents", []):
            made.delete_object(Bucket=BUCKET, Key=item["Key"])
        made.delete_bucket(Bucket=BUCKET)


def env_of(tenant: Tenant, s3_endpoint: str, url: str = f"s3://{BUCKET}/v1/") -> dict[str, str]:
    """The tenant's variables, with results in the bucket."""
    return tenant.env(MRGC_RESULTS_URL=url, AWS_ENDPOINT_URL_S3=s3_endpoint, AWS_REGION=REGION)


@pytest.mark.usefixtures("s3")
def test_a_short_job_travels_inline(tenant: Tenant, s3_endpoint: str) -> None:
    """With a bucket at hand, a job that fits the queue still goes into the queue."""
    with Client.from_env(env_of(tenant, s3_endpoint)) as client:
        client.submit(["hello"])
    assert [set(fields) for fields in tenant.peer.messages()] == [{b"job"}]


def test_a_long_job_travels_as_a_claim_check(tenant: Tenant, s3: Any, s3_endpoint: str) -> None:
    """The message names object, hash and length; the object is the sealed job, outside every tenant's results."""
    with Client.from_env(env_of(tenant, s3_endpoint)) as client:
        (submitted,) = client.submit(["x" * MAX_INLINE_BYTES])
        sealed = client.seal(["y"], JobOptions(MODEL))
        list(client.send([sealed]))
    first, second = tenant.peer.messages()
    check = strict_cbor.decode(first[b"ref"])
    assert set(check) == {"url", "sha256", "bytes"}
    assert check["url"] == f"s3://{BUCKET}/v1/_jobs/acme/{submitted.request.hex()}.mrgc"
    stored = s3.get_object(Bucket=BUCKET, Key=check["url"].removeprefix(f"s3://{BUCKET}/"))["Body"].read()
    assert (check["sha256"], check["bytes"]) == (hashlib.sha256(stored).digest(), len(stored))
    assert parse_job(stored).request == submitted.request
    assert second == {b"job": sealed}


def test_a_long_job_sent_again_is_stored_once(tenant: Tenant, s3: Any, s3_endpoint: str) -> None:
    """The second upload of the same job finds its object there, and the job is enqueued."""
    with Client.from_env(env_of(tenant, s3_endpoint)) as client:
        sealed = client.seal(["x" * MAX_INLINE_BYTES], JobOptions(MODEL))
        list(client.send([sealed]))
        list(client.send([sealed]))
    assert len(tenant.peer.messages()) == 2
    assert s3.list_objects_v2(Bucket=BUCKET)["KeyCount"] == 1


@pytest.mark.parametrize("prefix", ["", "v1/", "a/b/"])
def test_results_are_read_from_a_bucket(tenant: Tenant, s3: Any, s3_endpoint: str, prefix: str) -> None:
    """Below any prefix, also none: a result that is there is opened, one that is not is waited for."""
    with Client.from_env(env_of(tenant, s3_endpoint, f"s3://{BUCKET}/{prefix}")) as client:
        first, second = client.submit(["a", "b"], items_per_job=1)
        job = tenant.peer.jobs()[0]
        key = f"{prefix}acme/{first.id}/{first.request.hex()}.mrgc"
        s3.put_object(Bucket=BUCKET, Key=key, Body=tenant.peer.seal(job))
        outcomes = {outcome.job.id: outcome.state for outcome in client.wait([first, second], timeout_s=0.2)}
    assert outcomes == {first.id: State.OK, second.id: State.TIMED_OUT}


def test_a_bucket_that_does_not_exist_is_not_an_empty_one(tenant: Tenant, s3: Any, s3_endpoint: str) -> None:
    """Waiting for results in a mistyped bucket fails instead of timing out."""
    with Client.from_env(env_of(tenant, s3_endpoint, "s3://mistyped/")) as client:
        (job,) = client.submit(["a"])
        with pytest.raises(ConfigError, match="bucket"):
            list(client.wait([job], timeout_s=0))
    assert s3.list_objects_v2(Bucket=BUCKET)["KeyCount"] == 0


@pytest.mark.parametrize(
    ("status", "text"), [(403, "s3:ListBucket"), (400, "does not answer"), (301, "does not answer")]
)
def test_a_store_that_refuses_is_not_an_empty_one(tenant: Tenant, status: int, text: str) -> None:
    """An answer that is neither the object nor `not found` ends the look with what to do about it."""
    with server_that_says(b"", status) as endpoint, Client.from_env(env_of(tenant, endpoint)) as client:
        (job,) = client.submit(["a"])
        with pytest.raises(StoreUnavailable, match=text):
            client.fetch(job)


def test_a_bucket_needs_credentials(tenant: Tenant, s3_endpoint: str) -> None:
    """Without credentials the bucket's variable is named."""
    aws = replace(tenant.kms.access("acme"), access_key=None, secret_key=None, s3_endpoint=s3_endpoint)
    with pytest.raises(ConfigError, match="MRGC_RESULTS_URL"):
        ResultStore(f"s3://{BUCKET}/", aws)
