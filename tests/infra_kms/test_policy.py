"""The generated key policy: what it says, and what it refuses to say."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.key_policy import AccessRequest, is_allowed, parse_policy
from mrgc.errors import ConfigError
from mrgc.policy import IMAGE_CONDITION, TENANT_ACTIONS, key_policy

TENANT_USER: Final = "arn:aws:iam::111122223333:user/acme"
SERVICE: Final = "arn:aws:iam::777788889999:role/mrgc-worker"
KEY: Final = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
PCR0: Final = b"\xa5" * 48
ARGUMENTS: Final[dict[str, Any]] = {
    "pcr0": PCR0,
    "tenant": "acme",
    "tenant_principal": TENANT_USER,
    "service_role": SERVICE,
    "key_arn": KEY,
}
ATTESTED: Final = {
    IMAGE_CONDITION: PCR0.hex(),
    "kms:EncryptionContext:mrgc:tenant": "acme",
    "kms:EncryptionContext:mrgc:use": "job",
}
ACTIONS: Final = [
    *TENANT_ACTIONS,
    "kms:CreateGrant",
    "kms:GenerateDataKeyWithoutPlaintext",
    "kms:GenerateRandom",
    "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
]


def decide(principal: str, action: str, conditions: dict[str, str]) -> bool:
    """Evaluate the generated policy."""
    policy = parse_policy(json.dumps(key_policy(**ARGUMENTS)))
    return is_allowed(policy, AccessRequest(principal, action, KEY, conditions))


def test_the_enclave_may_decrypt_jobs_and_nothing_else() -> None:
    """With everything right, the service's role has one action."""
    assert [action for action in ACTIONS if decide(SERVICE, action, ATTESTED)] == ["kms:Decrypt"]


@pytest.mark.parametrize("name", ATTESTED)
@pytest.mark.parametrize("value", [None, "other"])
def test_each_condition_is_needed(name: str, value: str | None) -> None:
    """Without the image, the tenant or the use, or with others, there is no key."""
    conditions = {key: each for key, each in (ATTESTED | {name: value}).items() if each is not None}
    assert not decide(SERVICE, "kms:Decrypt", conditions)


def test_the_measurement_is_compared_without_regard_to_case() -> None:
    """Hex in capitals is the same measurement; the Deny agrees with the Allow about that."""
    assert decide(SERVICE, "kms:Decrypt", ATTESTED | {IMAGE_CONDITION: PCR0.hex().upper()})


def test_the_tenant_keeps_its_key_and_gives_nobody_else_access() -> None:
    """The tenant's principal acts without a document, but not by grants or re-encryption."""
    allowed = [action for action in ACTIONS if decide(TENANT_USER, action, {})]
    assert allowed == list(TENANT_ACTIONS)
    assert not [action for action in ACTIONS if decide("arn:aws:iam::111122223333:user/else", action, ATTESTED)]


@given(
    st.sampled_from(ACTIONS),
    st.dictionaries(
        st.sampled_from([*ATTESTED, "kms:RecipientAttestation:PCR4"]), st.sampled_from(["job", "acme", "x"])
    ),
)
def test_without_the_image_the_role_gets_nothing_whatever_else_is_true(action: str, conditions: dict[str, str]) -> None:
    """No other combination of conditions helps, even if a later statement allows the role everything."""
    widened = key_policy(**ARGUMENTS)
    widened["Statement"].append({"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"})
    policy = parse_policy(json.dumps(widened))
    assert not is_allowed(policy, AccessRequest(SERVICE, action, KEY, conditions))


@pytest.mark.parametrize(
    "change",
    [
        {"pcr0": bytes(48)},
        {"pcr0": b""},
        {"pcr0": b"\xa5" * 32},
        {"pcr0": b"\xa5" * 64},
        {"tenant": ""},
        {"tenant": "Acme"},
        {"tenant": "a*"},
        {"tenant_principal": "*"},
        {"tenant_principal": "arn:aws:iam::111122223333:user/*"},
        {"tenant_principal": SERVICE},
        {"service_role": "*"},
        {"service_role": "arn:aws:iam::777788889999:root"},
        {"service_role": "arn:aws:iam::777788889999:role/*"},
        {"service_role": SERVICE + "\n"},
        {"key_arn": "arn:aws:kms:eu-west-1:111122223333:alias/acme"},
        {"key_arn": "arn:aws:kms:*"},
    ],
)
def test_a_policy_that_would_admit_too_much_is_not_written(change: dict[str, Any]) -> None:
    """Zero or cut measurements, wildcards and a tenant that is its own service are refused."""
    with pytest.raises(ConfigError):
        key_policy(**ARGUMENTS | change)


def test_the_resource_is_the_key_or_the_key_it_is_attached_to() -> None:
    """Every statement names the same resource."""
    named = {name: value for name, value in ARGUMENTS.items() if name != "key_arn"}
    assert {each["Resource"] for each in key_policy(**ARGUMENTS)["Statement"]} == {KEY}
    assert {each["Resource"] for each in key_policy(**named)["Statement"]} == {"*"}
