"""What may be asked of the generator beyond one image: further registers, the JSON protocol, a whole account."""

from __future__ import annotations

import itertools
import json
from typing import Any, Final

import pytest

from infra.key_policy import AccessRequest, is_allowed, parse_policy
from mrgc.errors import ConfigError
from mrgc.policy import FURTHER_PCRS, account_root
from mrgc.policy_review import DANGEROUS
from tests.policy.terms import ATTESTED, KEY, PCRS, SERVICE, TENANT, allow, generated, text

USES: Final = ("job", "payload", "standalone", "other", "")


def accesses(policy: str, conditions: dict[str, str]) -> set[tuple[str, str]]:
    """Return which actions the service may take under which use."""
    parsed = parse_policy(policy)
    return {
        (action, use)
        for action, use in itertools.product(DANGEROUS, USES)
        if is_allowed(parsed, AccessRequest(SERVICE, action, KEY, conditions | {"kms:EncryptionContext:mrgc:use": use}))
    }


def test_without_being_asked_the_policy_admits_sealed_jobs_only() -> None:
    """Bare payloads and standalone answers need the word of the tenant."""
    assert accesses(text(), ATTESTED) == {("kms:Decrypt", "job")}
    assert "payload" not in text()
    assert "standalone" not in text()


def test_the_json_protocol_adds_two_accesses_and_no_more() -> None:
    """Attested Decrypt of payloads, attested GenerateDataKey of standalone answers (docs/spec.md §7)."""
    policy = text(policy=generated(json_protocol=True))
    assert accesses(policy, ATTESTED) == {
        ("kms:Decrypt", "job"),
        ("kms:Decrypt", "payload"),
        ("kms:GenerateDataKey", "standalone"),
    }
    assert accesses(policy, ATTESTED | {"kms:EncryptionContext:mrgc:tenant": "other"}) == set()
    assert accesses(policy, {name: each for name, each in ATTESTED.items() if "Attestation" not in name}) == set()


def test_one_policy_fits_a_multi_region_key_and_its_replicas() -> None:
    """Without a key's name the policy means the key that it is attached to; with one, none of its replicas."""
    keys = [f"arn:aws:kms:{region}:111122223333:key/mrk-{'0' * 32}" for region in ("eu-west-1", "us-east-1")]
    conditions = ATTESTED | {"kms:EncryptionContext:mrgc:use": "job"}
    for key_arn, fitting in (("*", keys), (keys[0], keys[:1])):
        policy = parse_policy(text(policy=generated(key_arn=key_arn)))
        asked = [AccessRequest(SERVICE, "kms:Decrypt", key, conditions) for key in keys]
        assert [each.resource for each in asked if is_allowed(policy, each)] == fitting


@pytest.mark.parametrize("index", FURTHER_PCRS)
def test_a_further_register_is_demanded_beside_pcr0(index: int) -> None:
    """PCR0 alone is no longer enough, nor is the register alone."""
    policy = text(policy=generated(further_pcrs={index: PCRS[index]}))
    right = ATTESTED | {f"kms:RecipientAttestation:PCR{index}": PCRS[index].hex()}
    assert accesses(policy, right) == {("kms:Decrypt", "job")}
    assert accesses(policy, ATTESTED) == set()
    assert accesses(policy, right | {f"kms:RecipientAttestation:PCR{index}": "0f" * 48}) == set()
    assert accesses(policy, right | {"kms:RecipientAttestation:ImageSha384": "0f" * 48}) == set()


@pytest.mark.parametrize("wrong", [*(f"kms:RecipientAttestation:PCR{index}" for index in FURTHER_PCRS), None])
def test_a_later_allow_does_not_undo_a_further_register(wrong: str | None) -> None:
    """Each pinned register has a Deny of its own, so one that differs is enough to be denied everything."""
    policy = text(allow("*", "kms:*"), policy=generated(further_pcrs={index: PCRS[index] for index in FURTHER_PCRS}))
    right = ATTESTED | {f"kms:RecipientAttestation:PCR{index}": PCRS[index].hex() for index in FURTHER_PCRS}
    asked = right if wrong is None else right | {wrong: "0f" * 48}
    assert bool(accesses(policy, asked)) is (wrong is None)


@pytest.mark.parametrize(
    "change",
    [
        {"further_pcrs": {8: bytes(48)}},
        {"further_pcrs": {3: bytes(48)}},
        {"further_pcrs": {4: b"\xa5" * 32}},
        {"further_pcrs": {4: b""}},
        {"further_pcrs": {0: b"\xa5" * 48}},
        {"further_pcrs": {1: b"\xa5" * 48}},
        {"further_pcrs": {2: b"\xa5" * 48}},
        {"further_pcrs": {16: b"\xa5" * 48}},
        {"pcr0": bytes(48), "further_pcrs": {3: PCRS[3], 4: PCRS[4]}},
        {"pcr0": bytes(48), "further_pcrs": {0: PCRS[0]}},
    ],
)
def test_registers_that_prove_nothing_are_refused(change: dict[str, Any]) -> None:
    """Statement 6: zeros, other lengths, and registers that have no place beside PCR0 are not written."""
    with pytest.raises(ConfigError, match="PCR"):
        generated(**change)


def test_there_is_no_policy_without_pcr0() -> None:
    """Statement 6: a policy that pins only PCR3 and PCR4 cannot even be asked for."""
    for statement in generated(further_pcrs={3: PCRS[3], 4: PCRS[4]})["Statement"]:
        if statement["Effect"] == "Allow" and statement["Principal"] != {"AWS": TENANT}:
            pins = statement["Condition"]["StringEqualsIgnoreCase"]
            assert pins["kms:RecipientAttestation:ImageSha384"] == PCRS[0].hex()


@pytest.mark.parametrize("partition", ["aws", "aws-cn", "aws-us-gov"])
def test_an_account_stands_in_the_roles_partition(partition: str) -> None:
    """There is one spelling of an account's root per partition, and the role says which."""
    role = f"arn:{partition}:iam::777788889999:role/mrgc-worker"
    assert account_root("111122223333", service_role=role) == f"arn:{partition}:iam::111122223333:root"


@pytest.mark.parametrize(("account", "role"), [("11112222333", SERVICE), ("*", SERVICE), ("111122223333", "x")])
def test_an_account_is_twelve_digits(account: str, role: str) -> None:
    """Neither a wildcard nor another length."""
    with pytest.raises(ConfigError):
        account_root(account, service_role=role)


def test_a_policy_with_everything_fits_into_kms() -> None:
    """The longest policy is far from the 32,768 characters that KMS takes."""
    everything = generated(
        further_pcrs={index: PCRS[index] for index in FURTHER_PCRS}, json_protocol=True, key_arn=KEY, tenant="t" * 63
    )
    assert len(json.dumps(everything, indent=2)) < 8192
