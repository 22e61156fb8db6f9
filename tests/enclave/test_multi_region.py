"""Multi-Region keys: one KMS process that serves two regions, and an enclave that runs in the second."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from enclave.kms_regions import replica
from infra.local_nsm import LocalNsm
from mrgc.client_settings import AwsAccess
from mrgc.policy import key_policy
from mrgc.tenant_kms import TenantKms
from mrgc.wire.sealed import open_result, parse_result
from tests.enclave.stack import (
    PCR0,
    PCRS,
    REGION,
    SERVICE_ROLE,
    TENANT_ARN,
    Caller,
    DataKey,
    Kms,
    RunningEnclave,
    seal_request,
)

HERE = "us-east-1"
CONTEXT = {"mrgc:tenant": "acme", "mrgc:use": "job"}


class TwoRegions:
    """The way from an enclave to the KMS, which can be cut region by region."""

    def __init__(self, kms: Kms) -> None:
        self.ca = kms.ca
        self._kms = kms
        self.cut: set[str] = set()
        self.dialled: list[str] = []

    def dial(self, host: str, timeout_s: float) -> socket.socket:
        """Reach the KMS, unless the way to this host's region is cut."""
        region = host.split(".")[1]
        self.dialled.append(region)
        if region in self.cut:
            raise ConnectionRefusedError
        return self._kms.dial(host, timeout_s)


@pytest.fixture
def ways(kms: Kms, monkeypatch: pytest.MonkeyPatch) -> TwoRegions:
    """Return ways that are open; botocore's back-off takes no time."""
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _s: None)
    return TwoRegions(kms)


@pytest.fixture
def caller(tmp_path: Path, pki: Path, ways: TwoRegions) -> Iterator[Caller]:
    """Connect to an enclave in us-east-1."""
    nsm = LocalNsm(pki, PCRS, region=HERE)
    with RunningEnclave(tmp_path / "e.sock", nsm, ways) as running, running.serving() as connected:
        yield connected


def client(kms: Kms, region: str) -> Any:
    """Return acme's KMS client in a region."""
    return boto3.client(
        "kms",
        region_name=region,
        endpoint_url=f"https://127.0.0.1:{kms.port}",
        verify=str(kms.ca),
        aws_access_key_id="AKACME",
        aws_secret_access_key="acme-secret",
    )


def policy(pcr0: bytes = PCR0) -> str:
    """Return the generated policy, which fits a key and its replicas alike."""
    made = key_policy(pcr0=pcr0, tenant="acme", tenant_principal=TENANT_ARN.format("acme"), service_role=SERVICE_ROLE)
    return json.dumps(made)


def data_key(kms: Kms, *, multi_region: bool = True) -> DataKey:
    """Make a key in eu-west-1, and a data key under it there."""
    home = client(kms, REGION)
    arn = home.create_key(MultiRegion=multi_region)["KeyMetadata"]["Arn"]
    made = home.generate_data_key(KeyId=arn, KeySpec="AES_256", EncryptionContext=CONTEXT)
    return DataKey("acme", arn, CONTEXT, made["Plaintext"], made["CiphertextBlob"])


def replicate(kms: Kms, key: DataKey, *, pcr0: bytes = PCR0) -> str:
    """Replicate a key to us-east-1 under a policy of its own, then put the generated one on the key itself."""
    home = client(kms, REGION)
    made = home.replicate_key(KeyId=key.key_arn, ReplicaRegion=HERE, Policy=policy(pcr0))
    home.put_key_policy(KeyId=key.key_arn, PolicyName="default", Policy=policy())
    return str(made["ReplicaKeyMetadata"]["Arn"])


def test_a_data_key_of_one_region_opens_through_the_replica_that_the_job_names(
    caller: Caller, kms: Kms, ways: TwoRegions
) -> None:
    """Whatever region wrapped it: the key ARN of the header decides which region is called."""
    key = data_key(kms)
    job = key.job(key_arn=replicate(kms, key))
    assert caller.open_codes([job]) == ["ok"]
    assert set(ways.dialled) == {HERE}


def test_without_an_answer_of_its_own_region_a_job_opens_through_the_replica_here(
    caller: Caller, kms: Kms, ways: TwoRegions
) -> None:
    """The jobs of eu-west-1's tenants are served although eu-west-1's KMS is gone; results name the key of the job."""
    key = data_key(kms)
    replicate(kms, key)
    ways.cut = {REGION}
    job = key.job(b"payload")
    opened = caller.open_one(job)
    assert bytes(opened.plaintext) == b"payload"
    (sealed,) = caller.seal([seal_request(opened, job, b"answer")])
    assert isinstance(sealed, memoryview)
    result = parse_result(sealed)
    assert result.header.key_arn == key.key_arn
    assert open_result(result, data_key=key.plaintext) == b"answer"
    assert caller.health().kms_ready


def test_where_its_own_region_answers_no_other_is_asked(caller: Caller, kms: Kms, ways: TwoRegions) -> None:
    """A key that its region refuses stays refused, whatever a replica's policy would say."""
    key = data_key(kms)
    replicate(kms, key)
    client(kms, REGION).put_key_policy(KeyId=key.key_arn, PolicyName="default", Policy=policy(bytes([9]) * 48))
    assert caller.open_codes([key.job()]) == ["key_access"]
    assert set(ways.dialled) == {REGION}


@pytest.mark.parametrize("other", ["none", "another policy", "cut"])
def test_a_replica_that_gives_no_key_leaves_the_job_to_be_tried_again(
    caller: Caller, kms: Kms, ways: TwoRegions, other: str
) -> None:
    """A replica that is absent, refuses or is silent too says nothing of the job: key_busy, and it opens afterwards."""
    key = data_key(kms)
    client(kms, REGION).put_key_policy(KeyId=key.key_arn, PolicyName="default", Policy=policy())
    ways.cut = {REGION}
    if other == "another policy":
        key = data_key(kms)
        replicate(kms, key, pcr0=bytes([9]) * 48)
    elif other == "cut":
        key = data_key(kms)
        replicate(kms, key)
        ways.cut = {REGION, HERE}
    assert caller.open_codes([key.job()]) == ["key_busy"]
    assert set(ways.dialled) == {REGION, HERE}
    ways.cut = set()
    assert caller.open_codes([key.job()]) == ["ok"]


def test_a_key_of_one_region_is_asked_for_nowhere_else(caller: Caller, kms: Kms, ways: TwoRegions) -> None:
    """Only keys whose id begins with mrk- have replicas."""
    key = data_key(kms, multi_region=False)
    ways.cut = {REGION}
    assert caller.open_codes([key.job()]) == ["key_busy"]
    assert set(ways.dialled) == {REGION}


ARN = "arn:aws:kms:eu-west-1:123456789012:key/mrk-" + "0" * 32


@pytest.mark.parametrize(
    ("key_arn", "region", "expected"),
    [
        (ARN, "us-east-1", ARN.replace("eu-west-1", "us-east-1")),
        (ARN, "eu-west-1", None),
        (ARN, "", None),
        (ARN, "mars-west-1", None),
        (ARN, "us-gov-west-1", None),
        (ARN.replace("arn:aws:", "arn:aws-us-gov:").replace("eu-west-1", "us-gov-east-1"), "us-east-1", None),
        (ARN.replace("mrk-", "1234"), "us-east-1", None),
    ],
)
def test_a_replica_is_of_another_served_region_of_the_partition(
    key_arn: str, region: str, expected: str | None
) -> None:
    """Neither the key's own region, nor an unknown one, nor one beyond its partition."""
    assert replica(key_arn, region) == expected


def test_a_tenant_of_either_region_opens_what_the_other_has_wrapped(kms: Kms) -> None:
    """MRGC_KEY_ARN may name the key or its replica: under the generated policy each unwraps the other's data keys."""
    key = data_key(kms)
    arns = key.key_arn, replicate(kms, key)
    access = AwsAccess("AKACME", "acme-secret", kms_endpoint=f"https://127.0.0.1:{kms.port}", ca_bundle=str(kms.ca))
    tenants = [TenantKms(arn, access) for arn in arns]
    assert [bytes(tenant.decrypt(key.edk, CONTEXT)) for tenant in tenants] == [key.plaintext] * 2
    wrapped = tenants[1].generate(CONTEXT)
    assert tenants[0].decrypt(wrapped.edk, CONTEXT) == wrapped.data_key
    for tenant in tenants:
        tenant.close()
