"""What a tenant's jobs cost at KMS: calls are counted by the KMS process itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice

from enclave.key_cache import MAX_AGE_S
from mrgc.policy import key_policy
from mrgc.wire.enclave_protocol import MAX_JOBS
from tests.enclave.stack import PCR0, SERVICE_ROLE, TENANT_ARN, Caller, DataKey, Kms, RunningEnclave

JOBS = 10_000
TENANTS = 100
JOBS_PER_TENANT = 100


def batches(jobs: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Cut jobs into batches of the greatest legal size."""
    while batch := list(islice(jobs, MAX_JOBS)):
        yield batch


def opened(caller: Caller, jobs: Iterator[bytes]) -> int:
    """Open jobs, all of which must open; return how many there were."""
    codes = [code for batch in batches(jobs) for code in caller.open_codes(batch)]
    assert set(codes) == {"ok"}
    return len(codes)


def test_ten_thousand_jobs_of_one_tenant_cost_one_kms_call_per_enclave(
    caller: Caller, kms: Kms, reboot: RunningEnclave
) -> None:
    """Within the cache's max age of 300 s, each enclave asks KMS once for one data key, however many jobs it opens."""
    assert MAX_AGE_S == 300.0
    key, before = kms.data_key(), kms.decrypts()
    assert opened(caller, (key.job(b"x") for _ in range(JOBS))) == JOBS
    assert kms.decrypts() == before + 1
    with reboot.serving() as second:
        assert opened(second, (key.job(b"x") for _ in range(JOBS // 10))) == JOBS // 10
    assert kms.decrypts() == before + 2


def tenants_keys(kms: Kms) -> list[DataKey]:
    """Make one KMS key and one data key for each of many tenants, all kept by one principal."""
    client, keys = kms.client("acme"), []
    for tenant in (f"tenant-{number}" for number in range(TENANTS)):
        policy = key_policy(
            pcr0=PCR0, tenant=tenant, tenant_principal=TENANT_ARN.format("acme"), service_role=SERVICE_ROLE
        )
        arn = client.create_key(Policy=json.dumps(policy))["KeyMetadata"]["Arn"]
        context = {"mrgc:tenant": tenant, "mrgc:use": "job"}
        made = client.generate_data_key(KeyId=arn, KeySpec="AES_256", EncryptionContext=context)
        keys.append(DataKey(tenant, arn, context, made["Plaintext"], made["CiphertextBlob"]))
    return keys


def in_turns(keys: Sequence[DataKey]) -> Iterator[bytes]:
    """Seal a job of every tenant, then another of every tenant: each batch holds all of them."""
    return (key.job(b"x") for _ in range(JOBS_PER_TENANT) for key in keys)


def test_a_hundred_tenants_with_a_hundred_jobs_each_cost_a_hundred_kms_calls(caller: Caller, kms: Kms) -> None:
    """One call for each tenant's data key, though every batch holds jobs of all tenants."""
    keys, before = tenants_keys(kms), kms.decrypts()
    assert opened(caller, in_turns(keys)) == TENANTS * JOBS_PER_TENANT
    assert kms.decrypts() == before + TENANTS
    metrics = caller.metrics()
    assert (metrics["kms_calls"], metrics["kms_failures"], metrics["key_cache_entries"]) == (TENANTS, 0, TENANTS)
