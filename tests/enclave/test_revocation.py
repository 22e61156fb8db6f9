"""What is left of a data key after its tenant has taken KMS access away."""

from __future__ import annotations

import json
import time

import pytest

from enclave import enclave_app, key_cache
from mrgc.errors import MrgcError
from tests.enclave.stack import Caller, Kms, seal_request
from tests.waiting import until

SHORT_S = 1.5


@pytest.fixture(autouse=True)
def _short_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 300 s pass in less than two."""
    monkeypatch.setattr(key_cache, "MAX_AGE_S", SHORT_S)
    monkeypatch.setattr(enclave_app, "TICK_S", 0.05)


def revoke(kms: Kms, key_arn: str) -> None:
    """Leave the key's policy with what concerns the tenant."""
    policy = json.loads(kms.client("acme").get_key_policy(KeyId=key_arn, PolicyName="default")["Policy"])
    kept = [each for each in policy["Statement"] if each["Sid"] == "TenantOwnsTheKey"]
    kms.client("acme").put_key_policy(
        KeyId=key_arn, PolicyName="default", Policy=json.dumps(policy | {"Statement": kept})
    )


def test_after_revocation_no_job_opens_later_than_the_max_age(caller: Caller, kms: Kms) -> None:
    """Statement 9: a cached key serves until its max age since KMS's answer, however often it is used; then nothing."""
    key = kms.data_key()
    assert caller.open_codes([key.job()]) == ["ok"]
    answered_s = time.monotonic()
    revoke(kms, key.key_arn)
    opened_s: list[float] = []

    def is_refused() -> bool:
        began_s = time.monotonic()
        (code,) = caller.open_codes([key.job()])
        if code == "ok":
            opened_s.append(began_s)
        return code == "key_access"

    until(is_refused, within_s=20, what="the cached key to be too old")
    # A clock is the subject here: what opened was asked for within the age, counted from after KMS's answer.
    assert opened_s
    assert max(opened_s) < answered_s + SHORT_S
    assert caller.open_codes([key.job()]) == ["key_access"]
    assert caller.open_codes([kms.data_key().job()]) == ["ok"]


def test_after_revocation_no_result_is_sealed_either(caller: Caller, kms: Kms) -> None:
    """Statement 9: a ticket outlives the key, but sealing needs the key again, and the body is dropped without it."""
    key = kms.data_key()
    job = key.job()
    opened = caller.open_one(job)
    revoke(kms, key.key_arn)
    until(lambda: caller.metrics()["key_cache_entries"] == 0, within_s=20, what="the cached key to be zeroed")
    (outcome,) = caller.seal([seal_request(opened, job)])
    assert isinstance(outcome, MrgcError)
    assert outcome.code == "key_access"
