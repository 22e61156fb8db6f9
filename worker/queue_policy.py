"""The policy of one SQS queue: whose jobs it takes, and who works on them. Pure.

AWS: Amazon SQS Developer Guide, "Custom Amazon SQS policy language", and IAM User Guide, "Policy evaluation logic": an
explicit Deny wins over every identity policy, so that a broad IAM policy of some principal in the queue's account opens
nothing here. A queue's tenant is whoever may send to it (docs/spec.md §5), hence the denials and not only grants.

May import: the standard library, mrgc.errors. Called by worker.access.
"""

from __future__ import annotations

import re
from typing import Any, Final

from mrgc.errors import ConfigError

QUEUE: Final = re.compile(r"arn:aws[a-z-]{0,20}:sqs:[a-z0-9-]{5,30}:[0-9]{12}:[A-Za-z0-9_-]{1,80}(\.fifo)?")
#: A user or role, never a whole account: `aws:PrincipalArn` names whoever calls.
PRINCIPAL: Final = re.compile(r"arn:aws[a-z-]{0,20}:iam::[0-9]{12}:(user|role)/[A-Za-z0-9+=,.@_/-]{1,512}")

#: SendMessageBatch needs the right of SendMessage, and so on for every batch call.
SEND: Final = ("sqs:SendMessage",)
LOOK: Final = ("sqs:GetQueueUrl", "sqs:GetQueueAttributes")
WORK: Final = ("sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility")
#: Loses every job of the queue: whoever means it changes the policy first, and so leaves a trace.
PURGE: Final = ("sqs:PurgeQueue",)


def queue_policy(*, queue_arn: str, worker_role: str, tenant_principal: str | None) -> dict[str, Any]:
    """Return the policy of a tenant's queue or, without a tenant, of its dead letters.

    Args:
        queue_arn: of the queue that the policy is for.
        worker_role: role of the GPU hosts; it sends too, for dead letters and redrive.
        tenant_principal: user or role that sends the tenant's jobs; None for a dead-letter queue.

    Raises:
        ConfigError: an ARN is not of its form; names which.
    """
    _ensure(QUEUE, queue_arn, "queue_arn")
    _ensure(PRINCIPAL, worker_role, "worker_role")
    senders = [worker_role]
    statements = [_allow("WorkerLeases", worker_role, [*WORK, *SEND, *LOOK])]
    if tenant_principal is not None:
        _ensure(PRINCIPAL, tenant_principal, "tenant_principal")
        if tenant_principal == worker_role:
            raise ConfigError("queue policy: tenant_principal and worker_role are one")
        senders.append(tenant_principal)
        statements.append(_allow("TenantSends", tenant_principal, [*SEND, "sqs:GetQueueUrl"]))
    statements += [
        _deny("OnlyTheWorkerReceives", WORK, {"ArnNotEquals": {"aws:PrincipalArn": [worker_role]}}),
        _deny("NobodyElseSends", SEND, {"ArnNotEquals": {"aws:PrincipalArn": senders}}),
        _deny("NobodyEmptiesIt", PURGE, {}),
        _deny("NoPlainHttp", ("sqs:*",), {"Bool": {"aws:SecureTransport": "false"}}),
    ]
    return {
        "Version": "2012-10-17",
        "Statement": [statement | {"Resource": queue_arn} for statement in statements],
    }


def _allow(sid: str, principal: str, actions: list[str]) -> dict[str, Any]:
    return {"Sid": sid, "Effect": "Allow", "Principal": {"AWS": principal}, "Action": actions}


def _deny(sid: str, actions: tuple[str, ...], condition: dict[str, Any]) -> dict[str, Any]:
    denied = {"Sid": sid, "Effect": "Deny", "Principal": "*", "Action": list(actions)}
    return denied | ({"Condition": condition} if condition else {})


def _ensure(pattern: re.Pattern[str], value: str, name: str) -> None:
    if pattern.fullmatch(value) is None:
        raise ConfigError(f"queue policy: {name} is not of its form")
