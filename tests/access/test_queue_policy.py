"""Queue policies, judged as IAM judges them: who may do what to a tenant's queue, whatever else they may do."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest

from mrgc.errors import ConfigError
from worker.queue_policy import queue_policy

QUEUE = "arn:aws:sqs:eu-west-1:111122223333:mrgc-acme"
WORKER = "arn:aws:iam::111122223333:role/mrgc-worker"
ACME = "arn:aws:iam::444455556666:role/acme"
GLOBEX = "arn:aws:iam::777788889999:user/globex"
ADMIN = "arn:aws:iam::111122223333:role/admin"
POLICY = queue_policy(queue_arn=QUEUE, worker_role=WORKER, tenant_principal=ACME)
DEAD = queue_policy(queue_arn=QUEUE, worker_role=WORKER, tenant_principal=None)

#: Amazon SQS Developer Guide, "Amazon SQS API permissions": every action that a queue policy can name.
ACTIONS = (
    "AddPermission", "CancelMessageMoveTask", "ChangeMessageVisibility", "DeleteMessage", "DeleteQueue",
    "GetQueueAttributes", "GetQueueUrl", "ListDeadLetterSourceQueues", "ListMessageMoveTasks", "ListQueueTags",
    "PurgeQueue", "ReceiveMessage", "RemovePermission", "SendMessage", "SetQueueAttributes", "StartMessageMoveTask",
    "TagQueue", "UntagQueue",
)  # fmt: skip
WORK = {
    "ReceiveMessage",
    "DeleteMessage",
    "ChangeMessageVisibility",
    "SendMessage",
    "GetQueueUrl",
    "GetQueueAttributes",
}


def decision(policy: dict[str, Any], principal: str, action: str, *, tls: bool) -> str:
    """IAM User Guide, "Policy evaluation logic", for the elements that these policies use: deny, allow or nothing."""
    found = "nothing"
    for statement in policy["Statement"]:
        who = statement["Principal"]
        names = who == "*" or who["AWS"] == principal
        actions = any(fnmatchcase(f"sqs:{action}", pattern) for pattern in statement["Action"])
        if not names or not actions or not holds(statement.get("Condition", {}), principal, tls=tls):
            continue
        if statement["Effect"] == "Deny":
            return "deny"
        found = "allow"
    return found


def holds(condition: dict[str, Any], principal: str, *, tls: bool) -> bool:
    """Whether a condition block holds; an operator or key that this does not know is an error."""
    for operator, block in condition.items():
        for key, value in block.items():
            match operator, key:
                case "ArnNotEquals", "aws:PrincipalArn":
                    if principal in value:
                        return False
                case "Bool", "aws:SecureTransport":
                    if tls is (value != "true"):
                        return False
                case _:
                    raise AssertionError(f"unknown condition {operator} {key}")
    return True


def allowed(policy: dict[str, Any], principal: str, *, tls: bool = True, by_identity: bool = False) -> set[str]:
    """Actions that a principal may take; `by_identity`: its own IAM policies allow everything on the queue."""
    wanted = {"allow", "nothing"} if by_identity else {"allow"}
    return {action for action in ACTIONS if decision(policy, principal, action, tls=tls) in wanted}


def test_a_tenant_sends_and_no_more() -> None:
    """The tenant's principal may find the queue and send to it."""
    assert allowed(POLICY, ACME) == {"SendMessage", "GetQueueUrl"}


def test_the_worker_leases_and_looks_and_no_more() -> None:
    """The worker's role may do what the intake and the control tasks do."""
    assert allowed(POLICY, WORKER) == WORK
    assert allowed(DEAD, WORKER) == WORK


@pytest.mark.parametrize("stranger", [GLOBEX, ADMIN])
def test_nobody_else_sends_or_receives_whatever_his_own_policies_say(stranger: str) -> None:
    """Neither another tenant nor an administrator of the queue's account passes for the tenant or the worker."""
    for policy in (POLICY, DEAD):
        assert allowed(policy, stranger) == set()
        touching = {"SendMessage", "ReceiveMessage", "DeleteMessage", "ChangeMessageVisibility", "PurgeQueue"}
        assert not allowed(policy, stranger, by_identity=True) & touching


def test_a_tenant_does_not_receive_whatever_its_own_policies_say() -> None:
    """A tenant in the queue's own account cannot read jobs back, nor delete them."""
    own = ACME.replace("444455556666", "111122223333")
    policy = queue_policy(queue_arn=QUEUE, worker_role=WORKER, tenant_principal=own)
    touching = {"ReceiveMessage", "DeleteMessage", "ChangeMessageVisibility", "PurgeQueue"}
    assert not allowed(policy, own, by_identity=True) & touching
    assert allowed(DEAD, own, by_identity=True).isdisjoint(touching | {"SendMessage"})


@pytest.mark.parametrize("principal", [ACME, WORKER, ADMIN])
def test_nothing_goes_without_tls(principal: str) -> None:
    """Plain HTTP is refused to everybody for everything."""
    for policy in (POLICY, DEAD):
        assert allowed(policy, principal, tls=False, by_identity=True) == set()


def test_every_statement_is_about_this_queue() -> None:
    """No statement names another resource, and each has a name."""
    for policy in (POLICY, DEAD):
        assert {statement["Resource"] for statement in policy["Statement"]} == {QUEUE}
        assert len({statement["Sid"] for statement in policy["Statement"]}) == len(policy["Statement"])


@pytest.mark.parametrize(
    "changes",
    [
        {"queue_arn": "https://sqs.eu-west-1.amazonaws.com/111122223333/mrgc-acme"},
        {"queue_arn": QUEUE + "*"},
        {"worker_role": "*"},
        {"worker_role": "arn:aws:iam::111122223333:root"},
        {"tenant_principal": "arn:aws:iam::444455556666:root"},
        {"tenant_principal": "arn:aws:sts::444455556666:assumed-role/acme/session"},
        {"tenant_principal": WORKER},
    ],
)
def test_a_malformed_or_too_wide_name_is_refused(changes: dict[str, str]) -> None:
    """Wildcards, whole accounts and sessions are no principal, and a URL is no ARN."""
    good = {"queue_arn": QUEUE, "worker_role": WORKER, "tenant_principal": ACME}
    with pytest.raises(ConfigError):
        queue_policy(**(good | changes))
