"""The terms that the tests of this folder write policies with, and edits of a policy's text."""

from __future__ import annotations

import json
from typing import Any, Final

from mrgc.policy import IMAGE_CONDITION, key_policy
from mrgc.policy_review import Expected

TENANT: Final = "arn:aws:iam::111122223333:role/acme"
SERVICE: Final = "arn:aws:iam::777788889999:role/mrgc-worker"
OTHER: Final = "arn:aws:iam::444455556666:role/other"
KEY: Final = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
PCRS: Final = {index: bytes([0xA0 + index]) * 48 for index in (0, 1, 2, 3, 4, 8)}
PCR0: Final = PCRS[0].hex()
TERMS: Final[dict[str, Any]] = {
    "pcr0": PCRS[0],
    "tenant": "acme",
    "tenant_principal": TENANT,
    "service_role": SERVICE,
}
#: What a reviewer knows who says nothing.
BARE: Final = Expected(key_arn=KEY, tenant="acme")
#: What a reviewer knows who says everything.
TOLD: Final = Expected(key_arn=KEY, tenant="acme", tenant_principal=TENANT, service_role=SERVICE, pcrs=PCRS)
ATTESTED: Final = {
    IMAGE_CONDITION: PCR0,
    "kms:RecipientAttestation:PCR0": PCR0,
    "kms:EncryptionContext:mrgc:tenant": "acme",
    "kms:EncryptionContext:mrgc:use": "job",
}


def generated(**changes: Any) -> dict[str, Any]:
    """Return a generated policy."""
    return key_policy(**TERMS | changes)


def text(*more: dict[str, Any], policy: dict[str, Any] | None = None, without: str = "") -> str:
    """Return a policy's text, with statements more, and without the one of a Sid."""
    base = generated() if policy is None else policy
    statements = [each for each in base["Statement"] if each["Sid"] != without]
    return json.dumps(base | {"Statement": [*statements, *more]})


def allow(principal: Any, action: Any, condition: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Return an Allow."""
    statement = {"Sid": "Added", "Effect": "Allow", "Principal": principal, "Action": action, "Resource": "*"}
    return statement | ({} if condition is None else {"Condition": condition}) | changes


def edited(sid: str, **changes: Any) -> str:
    """Return the generated policy with one statement changed; None removes an element."""
    policy = generated()
    statements = [
        {name: value for name, value in (each | changes).items() if value is not None} if each["Sid"] == sid else each
        for each in policy["Statement"]
    ]
    return json.dumps(policy | {"Statement": statements})
