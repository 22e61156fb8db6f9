"""The key policy of a tenant's KMS key: who may use it, and which enclave image may open jobs with it.

docs/spec.md §7, AWS: KMS Developer Guide, "Condition keys for AWS Nitro Enclaves". Called by the tenant's tools and by
the one-machine stack's set-up. May import: the standard library, mrgc.errors, mrgc.wire.headers. It makes text and
talks to nobody.
"""

from __future__ import annotations

import re
from typing import Any, Final

from mrgc.errors import ConfigError
from mrgc.wire.headers import KEY_ARN, TENANT, USE_JOB

_PCR_BYTES: Final = 48  #: SHA-384.

_PRINCIPAL: Final = re.compile(r"arn:aws[a-z-]{0,20}:iam::[0-9]{12}:(root|(user|role)/[A-Za-z0-9+=,.@_/-]{1,512})")
_ROLE: Final = re.compile(r"arn:aws[a-z-]{0,20}:iam::[0-9]{12}:role/[A-Za-z0-9+=,.@_/-]{1,512}")

#: The condition key whose value is PCR0, in hex.
IMAGE_CONDITION: Final = "kms:RecipientAttestation:ImageSha384"
#: What the tenant itself does with the key. Without CreateGrant and ReEncrypt*, by which access would outlive the
#: policy that its reviewers read.
TENANT_ACTIONS: Final = (
    "kms:CancelKeyDeletion",
    "kms:Decrypt",
    "kms:DescribeKey",
    "kms:DisableKey",
    "kms:EnableKey",
    "kms:Encrypt",
    "kms:GenerateDataKey",
    "kms:GetKeyPolicy",
    "kms:GetKeyRotationStatus",
    "kms:ListGrants",
    "kms:ListKeyPolicies",
    "kms:PutKeyPolicy",
    "kms:RevokeGrant",
    "kms:ScheduleKeyDeletion",
)


def key_policy(
    *, pcr0: bytes, tenant: str, tenant_principal: str, service_role: str, key_arn: str = "*"
) -> dict[str, Any]:
    """Return the policy that lets one enclave image, and no other use of the service's role, open a tenant's jobs.

    Args:
        pcr0: the measurement of the whole image, 48 bytes. Nothing else is pinned in its place: PCR3 and PCR4 name
            the parent, and a policy with those alone would admit every image, debug enclaves too, on it.
        tenant: the tenant's name, as in its jobs.
        tenant_principal: ARN of the tenant's own user or role (or its account's root), which keeps the key.
        service_role: ARN of the role under which the service calls KMS.
        key_arn: the key, or "*", which in a key policy means the key that it is attached to.

    Raises:
        ConfigError: PCR0 is zero (then every debug enclave has it) or of another length, or a name is not of its
            form.
    """
    if len(pcr0) != _PCR_BYTES or not any(pcr0):
        raise ConfigError(f"key policy: PCR0 is not {_PCR_BYTES} bytes of a measurement")
    for name, value, pattern in (
        ("tenant", tenant, TENANT),
        ("tenant_principal", tenant_principal, _PRINCIPAL),
        ("service_role", service_role, _ROLE),
    ):
        if pattern.fullmatch(value) is None:
            raise ConfigError(f"key policy: {name} is not of its form")
    if key_arn != "*" and KEY_ARN.fullmatch(key_arn) is None:
        raise ConfigError("key policy: key_arn is not the ARN of a key")
    if tenant_principal == service_role:
        raise ConfigError("key policy: the tenant and the service must be different principals")
    statements = (
        _tenant_statement(tenant_principal),
        _enclave_statement(pcr0, tenant=tenant, service_role=service_role),
        _unattested_statement(pcr0, service_role=service_role),
    )
    return {"Version": "2012-10-17", "Statement": [each | {"Resource": key_arn} for each in statements]}


def _tenant_statement(tenant_principal: str) -> dict[str, Any]:
    return {
        "Sid": "TenantOwnsTheKey",
        "Effect": "Allow",
        "Principal": {"AWS": tenant_principal},
        "Action": list(TENANT_ACTIONS),
    }


def _enclave_statement(pcr0: bytes, *, tenant: str, service_role: str) -> dict[str, Any]:
    context = {"kms:EncryptionContext:mrgc:tenant": tenant, "kms:EncryptionContext:mrgc:use": USE_JOB}
    return {
        "Sid": "EnclaveOpensJobs",
        "Effect": "Allow",
        "Principal": {"AWS": service_role},
        "Action": "kms:Decrypt",
        "Condition": {
            "StringEqualsIgnoreCase": {IMAGE_CONDITION: pcr0.hex()},
            "StringEquals": context,
        },
    }


def _unattested_statement(pcr0: bytes, *, service_role: str) -> dict[str, Any]:
    """Deny the role everything without this image, whatever an IAM policy or a later statement allows.

    The negated operator also matches when the call has no document. aws:PrincipalArn limits it to the role: a Deny
    for everyone would keep the tenant from its own results.
    """
    return {
        "Sid": "NothingWithoutAttestation",
        "Effect": "Deny",
        "Principal": {"AWS": "*"},
        "Action": "kms:*",
        "Condition": {
            "StringNotEqualsIgnoreCase": {IMAGE_CONDITION: pcr0.hex()},
            "ArnEquals": {"aws:PrincipalArn": service_role},
        },
    }
