"""The key policy of a tenant's KMS key: who may use it, and which enclave image may open jobs with it.

docs/spec.md §7, AWS: KMS Developer Guide, "Condition keys for AWS Nitro Enclaves". Called by the tenant's tools and by
the one-machine stack's set-up. May import: the standard library, mrgc.errors, mrgc.wire.headers. It makes text and
talks to nobody.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from mrgc.errors import ConfigError
from mrgc.wire.headers import KEY_ARN, TENANT, USE_JOB

_PCR_BYTES: Final = 48  #: SHA-384.
_NONE: Final[Mapping[int, bytes]] = MappingProxyType({})

PRINCIPAL: Final = re.compile(r"arn:aws[a-z-]{0,20}:iam::[0-9]{12}:(root|(user|role)/[A-Za-z0-9+=,.@_/-]{1,512})")
ACCOUNT: Final = re.compile(r"[0-9]{12}")
ROLE: Final = re.compile(r"arn:(?P<partition>aws[a-z-]{0,20}):iam::[0-9]{12}:role/[A-Za-z0-9+=,.@_/-]{1,512}")

#: The condition key whose value is PCR0, in hex; `PCR_CONDITION` with 0 is the same register.
IMAGE_CONDITION: Final = "kms:RecipientAttestation:ImageSha384"
PCR_CONDITION: Final = "kms:RecipientAttestation:PCR{}"
CONTEXT_CONDITION: Final = "kms:EncryptionContext:{}"
TENANT_KEY: Final = "mrgc:tenant"
USE_KEY: Final = "mrgc:use"
#: What may be pinned beside PCR0: the parent's role, the parent instance, the certificate that signed the image.
FURTHER_PCRS: Final = (3, 4, 8)

#: What the service's role may do for sealed jobs: (action, mrgc:use), always with attestation.
JOB_ACCESS: Final = (("kms:Decrypt", USE_JOB),)
#: What the JSON protocol needs beside it (docs/spec.md §7, §8).
JSON_ACCESS: Final = (("kms:Decrypt", "payload"), ("kms:GenerateDataKey", "standalone"))
_SIDS: Final = {
    JOB_ACCESS[0]: "EnclaveOpensJobs",
    JSON_ACCESS[0]: "EnclaveOpensPayloads",
    JSON_ACCESS[1]: "EnclaveSealsStandalone",
}

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


def account_root(account: str, *, service_role: str) -> str:
    """Return the principal that stands for a whole account, in the partition of the service's role.

    To name it in an Allow leaves the choice among that account's users and roles to its own IAM policies.

    Raises:
        ConfigError: the account is not 12 digits, or the role is not of its form.
    """
    role = ROLE.fullmatch(service_role)
    if role is None or ACCOUNT.fullmatch(account) is None:
        raise ConfigError("key policy: account or service_role is not of its form")
    return f"arn:{role['partition']}:iam::{account}:root"


def key_policy(  # noqa: PLR0913 - one keyword per term of the policy
    *,
    pcr0: bytes,
    tenant: str,
    tenant_principal: str,
    service_role: str,
    key_arn: str = "*",
    further_pcrs: Mapping[int, bytes] = _NONE,
    json_protocol: bool = False,
) -> dict[str, Any]:
    """Return the policy that lets one enclave image, and no other use of the service's role, open a tenant's jobs.

    Args:
        pcr0: the measurement of the whole image, 48 bytes. Nothing else is pinned in its place: PCR3 and PCR4 name
            the parent, and a policy with those alone would admit every image, debug enclaves too, on it.
        tenant: the tenant's name, as in its jobs.
        tenant_principal: ARN of the tenant's own user or role (or its account's root), which keeps the key.
        service_role: ARN of the role under which the service calls KMS.
        key_arn: the key, or "*", which in a key policy means the key that it is attached to.
        further_pcrs: registers of `FURTHER_PCRS` that must hold as well, index → 48 bytes.
        json_protocol: also admit what the JSON protocol needs. It gives up the floor, the expiry and the commitment
            of sealed jobs, so it is never the default.

    Raises:
        ConfigError: a measurement is zero (then every debug enclave has it) or of another length, or a name is not
            of its form.
    """
    _ensure_measurement(0, pcr0)
    for index, register in further_pcrs.items():
        if index not in FURTHER_PCRS:
            raise ConfigError(f"key policy: PCR{index} is not one of those that may be pinned beside PCR0")
        _ensure_measurement(index, register)
    for name, value, pattern in (
        ("tenant", tenant, TENANT),
        ("tenant_principal", tenant_principal, PRINCIPAL),
        ("service_role", service_role, ROLE),
    ):
        if pattern.fullmatch(value) is None:
            raise ConfigError(f"key policy: {name} is not of its form")
    if key_arn != "*" and KEY_ARN.fullmatch(key_arn) is None:
        raise ConfigError("key policy: key_arn is not the ARN of a key")
    if tenant_principal == service_role:
        raise ConfigError("key policy: the tenant and the service must be different principals")
    pins = {IMAGE_CONDITION: pcr0.hex()}
    pins |= {PCR_CONDITION.format(index): further_pcrs[index].hex() for index in sorted(further_pcrs)}
    statements = (
        _tenant_statement(tenant_principal),
        *(
            _enclave_statement(access, pins, tenant=tenant, service_role=service_role)
            for access in (*JOB_ACCESS, *(JSON_ACCESS if json_protocol else ()))
        ),
        *(_unattested_statement(key, value, service_role=service_role) for key, value in pins.items()),
    )
    return {"Version": "2012-10-17", "Statement": [each | {"Resource": key_arn} for each in statements]}


def _ensure_measurement(index: int, value: bytes) -> None:
    if len(value) != _PCR_BYTES or not any(value):
        raise ConfigError(f"key policy: PCR{index} is not {_PCR_BYTES} bytes of a measurement")


def _tenant_statement(tenant_principal: str) -> dict[str, Any]:
    return {
        "Sid": "TenantOwnsTheKey",
        "Effect": "Allow",
        "Principal": {"AWS": tenant_principal},
        "Action": list(TENANT_ACTIONS),
    }


def _enclave_statement(
    access: tuple[str, str], pins: Mapping[str, str], *, tenant: str, service_role: str
) -> dict[str, Any]:
    action, use = access
    return {
        "Sid": _SIDS[access],
        "Effect": "Allow",
        "Principal": {"AWS": service_role},
        "Action": action,
        "Condition": {
            "StringEqualsIgnoreCase": dict(pins),
            "StringEquals": {CONTEXT_CONDITION.format(TENANT_KEY): tenant, CONTEXT_CONDITION.format(USE_KEY): use},
        },
    }


def _unattested_statement(condition_key: str, value: str, *, service_role: str) -> dict[str, Any]:
    """Deny the role everything without this measurement, whatever an IAM policy or a later statement allows.

    The negated operator also matches when the call has no document. Each register has a Deny of its own, because the
    conditions of one statement must all hold: together they would deny only what differs in every register.
    aws:PrincipalArn limits it to the role: a Deny for everyone would keep the tenant from its own results.
    """
    return {
        "Sid": "NothingWithoutAttestation"
        + ("" if condition_key == IMAGE_CONDITION else condition_key.rpartition(":")[2]),
        "Effect": "Deny",
        "Principal": {"AWS": "*"},
        "Action": "kms:*",
        "Condition": {
            "StringNotEqualsIgnoreCase": {condition_key: value},
            "ArnEquals": {"aws:PrincipalArn": service_role},
        },
    }
