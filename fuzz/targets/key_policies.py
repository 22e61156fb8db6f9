"""KMS key policies as the local KMS reads them: parsed or refused, and evaluated within linear time."""

from __future__ import annotations

import json

from fuzz.target import Target
from fuzz.targets import strict_json
from infra.key_policy import AccessRequest, PolicyError, is_allowed, parse_policy
from mrgc.policy import IMAGE_CONDITION, key_policy

ROLE = "arn:aws:iam::123456789012:role/mrgc"
TENANT = "arn:aws:iam::123456789012:user/acme"
KEY = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
PCR0 = bytes(range(1, 49))
ATTESTED = {
    IMAGE_CONDITION: PCR0.hex(),
    "kms:EncryptionContext:mrgc:tenant": "acme",
    "kms:EncryptionContext:mrgc:use": "job",
}
_REQUESTS = (
    AccessRequest(ROLE, "kms:Decrypt", KEY, ATTESTED),
    AccessRequest(ROLE, "kms:Decrypt", KEY, {}),
    AccessRequest(TENANT, "kms:GenerateDataKey", KEY, {}),
)


def check(data: bytes) -> bool:
    """Parse a policy and ask it about three calls."""
    try:
        policy = parse_policy(data.decode("utf-8", "replace"))
    except PolicyError:
        return False
    for request in _REQUESTS:
        if is_allowed(policy, request):
            assert any(statement.allow for statement in policy)
    return True


def seeds() -> dict[str, bytes]:
    """The policy that we write, statements with everything that the evaluator knows, and some that it refuses."""
    ours = key_policy(pcr0=PCR0, tenant="acme", tenant_principal=TENANT, service_role=ROLE)
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": ["*", "123456789012"]},
        "Action": ["kms:De*", "kms:?ncrypt"],
        "Resource": "*",
        "Condition": {
            "Null": {IMAGE_CONDITION: False},
            "StringLike": {"kms:EncryptionContext:mrgc:tenant": ["a*", "?cme"]},
            "ArnNotLike": {"aws:PrincipalArn": "arn:aws:iam::*:role/*"},
            "Bool": {"aws:SecureTransport": "true"},
        },
    }
    return {
        name: json.dumps(document).encode()
        for name, document in {
            "ours": ours,
            "everything": {"Version": "2012-10-17", "Id": "x", "Statement": statement},
            "variable": {"Version": "2012-10-17", "Statement": statement | {"Resource": "${aws:username}"}},
            "old-version": {"Version": "2008-10-17", "Statement": statement},
            "service-principal": {"Version": "2012-10-17", "Statement": statement | {"Principal": {"Service": "x"}}},
            "not-action": {"Version": "2012-10-17", "Statement": {"Effect": "Deny", "NotAction": "kms:*"}},
        }.items()
    }


TARGET = Target(check, seeds, strict_json.mutate, max_bytes=4_096)
