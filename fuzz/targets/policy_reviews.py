"""The tenant's review of a live key policy: what it finds nothing wrong with, the evaluator lets nobody misuse."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import product

from fuzz.target import Target
from fuzz.targets import strict_json
from fuzz.targets.key_policies import ATTESTED, KEY, PCR0, ROLE, TENANT
from infra.key_policy import AccessRequest, PolicyError, is_allowed, parse_policy
from mrgc.errors import FormatError
from mrgc.policy import CONTEXT_CONDITION, IMAGE_CONDITION, TENANT_KEY, USE_KEY, key_policy
from mrgc.policy_review import DANGEROUS, Expected, review

_EXPECTED = Expected(key_arn=KEY, tenant="acme", tenant_principal=TENANT, service_role=ROLE, pcrs={0: PCR0})
_STRANGERS = ("arn:aws:iam::123456789012:role/other", "arn:aws:iam::999999999999:role/mrgc")


def _misuses() -> Iterator[AccessRequest]:
    """Calls that a policy of docs/spec.md §7 allows to nobody but the tenant itself."""
    wrong: tuple[Mapping[str, str], ...] = (
        {},
        {IMAGE_CONDITION: PCR0.hex()},
        ATTESTED | {IMAGE_CONDITION: bytes(48).hex()},
        ATTESTED | {IMAGE_CONDITION: "ab" * 48},
        ATTESTED | {CONTEXT_CONDITION.format(TENANT_KEY): "another"},
        ATTESTED | {CONTEXT_CONDITION.format(USE_KEY): "payload"},
    )
    for action, conditions in product(DANGEROUS, wrong):
        yield AccessRequest(ROLE, action, KEY, conditions)
    for action, stranger in product(DANGEROUS, _STRANGERS):
        yield AccessRequest(stranger, action, KEY, ATTESTED)
        yield AccessRequest(stranger, action, KEY, {})


_MISUSES = tuple(_misuses())


def check(data: bytes) -> bool:
    """Review a policy, and if nothing is found, try to misuse it."""
    text = data.decode("utf-8", "replace")
    try:
        reviewed = review(text, (), _EXPECTED)
        policy = parse_policy(text)
    except (FormatError, PolicyError):
        return False
    if not reviewed.findings:
        assert not [misuse for misuse in _MISUSES if is_allowed(policy, misuse)]
    return True


def seeds() -> dict[str, bytes]:
    """The policy that we write, one step away from it in every direction, and what no policy is."""
    ours = key_policy(pcr0=PCR0, tenant="acme", tenant_principal=TENANT, service_role=ROLE)
    tenant, enclave, deny = ours["Statement"]
    image, context = enclave["Condition"]["StringEqualsIgnoreCase"], enclave["Condition"]["StringEquals"]
    pinned = {"StringEqualsIgnoreCase": image}
    changed = {
        "any-tenant": [tenant, enclave | {"Condition": pinned | {"StringEquals": _without(context, TENANT_KEY)}}, deny],
        "any-use": [tenant, enclave | {"Condition": pinned | {"StringEquals": _without(context, USE_KEY)}}, deny],
        "any-image": [tenant, enclave | {"Condition": {"StringEquals": context}}],
        "makes-keys": [tenant, enclave | {"Action": ["kms:Decrypt", "kms:GenerateDataKey"]}, deny],
        "stranger": [tenant, enclave, deny, tenant | {"Principal": {"AWS": _STRANGERS[0]}}],
        "everyone": [tenant, enclave | {"Principal": "*"}, deny],
        "account": [tenant | {"Principal": {"AWS": "123456789012"}}, enclave, deny],
        "narrow-deny": [tenant, enclave, deny | {"Action": "kms:Decrypt"}],
        "no-deny": [tenant, enclave],
    }
    found = {name: json.dumps(ours | {"Statement": statements}).encode() for name, statements in changed.items()}
    return found | {"ours": json.dumps(ours).encode(), "no-statement": b"{}"}


def _without(context: Mapping[str, str], key: str) -> dict[str, str]:
    return {name: value for name, value in context.items() if name != CONTEXT_CONDITION.format(key)}


TARGET = Target(check, seeds, strict_json.mutate, max_bytes=4_096)
