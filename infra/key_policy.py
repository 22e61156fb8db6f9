"""Evaluation of KMS key policies: a pure function from (policy, request) to allowed or not.

Implements what the key policies of docs/spec.md §7 need, by the rules of AWS: IAM User Guide, "Policy evaluation
logic" and "JSON policy elements": an explicit Deny wins, everything else is denied by default. Whatever this module
does not know fails closed: an Allow with an unknown operator or condition key does not match, a Deny does, and a policy
with an unknown element is refused as a whole. There are no IAM identity policies here: a statement that allows an
account's root delegates to those principals of the account that are its administrators, and to nobody else. Called by
`infra.kms_service`. May import: the standard library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

#: AWS: KMS API, PutKeyPolicy: longest policy text.
MAX_POLICY_CHARS: Final = 32_768

_VERSION: Final = "2012-10-17"
_STATEMENT_KEYS: Final = frozenset({"Sid", "Effect", "Principal", "Action", "Resource", "Condition"})
_PRINCIPAL: Final = re.compile(r"\*|[0-9]{12}|arn:aws[a-z-]*:iam::[0-9]{12}:(root|(user|role)/[A-Za-z0-9+=,.@_/-]+)")
_ACCOUNT: Final = re.compile(r"(?:arn:aws[a-z-]*:iam::)?([0-9]{12})(?::root)?")
_KNOWN_KEY: Final = re.compile(
    r"aws:PrincipalArn|kms:EncryptionContext:.+|kms:RecipientAttestation:(ImageSha384|PCR([0-9]|[12][0-9]|3[01]))"
)
_ARN_PARTS: Final = 6


class PolicyError(ValueError):
    """Raised when a policy text cannot be held to what it says."""


@dataclass(frozen=True, slots=True)
class AccessRequest:
    """One call, as key policies see it.

    Attributes:
        principal: ARN of the calling user or role; also the value of aws:PrincipalArn.
        action: for example `kms:Decrypt`.
        resource: the key's ARN.
        conditions: value of every other condition key that is present in this call.
        is_administrator: whether the caller's own IAM policies allow whatever a key policy leaves to its account.
    """

    principal: str
    action: str
    resource: str
    conditions: Mapping[str, str]
    is_administrator: bool = False

    def value(self, key: str) -> str | None:
        """Return the value of a condition key; None when the call has none."""
        return self.principal if key == "aws:PrincipalArn" else self.conditions.get(key)


@dataclass(frozen=True, slots=True)
class Condition:
    """One operator on one condition key; its values are alternatives."""

    operator: str
    key: str
    values: tuple[str, ...]

    def holds(self, request: AccessRequest) -> bool | None:
        """Return whether the condition holds; None when its operator or key is unknown."""
        if _KNOWN_KEY.fullmatch(self.key) is None:
            return None
        actual = request.value(self.key)
        if self.operator == "Null":
            return str(actual is None).lower() in self.values
        if self.operator not in _OPERATORS:
            return None
        compare, negated = _OPERATORS[self.operator]
        # A negated operator also holds when the key is absent, which is what makes the Deny of §7 complete.
        return (actual is not None and any(compare(value, actual) for value in self.values)) is not negated


@dataclass(frozen=True, slots=True)
class Statement:
    """One parsed statement."""

    allow: bool
    principals: tuple[str, ...]
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    conditions: tuple[Condition, ...]

    def matches(self, request: AccessRequest) -> bool:
        """Return whether the statement applies, taking what is unknown against the caller."""
        return (
            any(self._names(principal, request) for principal in self.principals)
            and any(_is_like(action.lower(), request.action.lower()) for action in self.actions)
            and any(_is_like(resource, request.resource) for resource in self.resources)
            and all(self._counts(condition.holds(request)) for condition in self.conditions)
        )

    def _names(self, principal: str, request: AccessRequest) -> bool:
        if principal in {"*", request.principal}:
            return True
        account = _ACCOUNT.fullmatch(principal)
        if account is None or request.principal.split(":")[4] != account[1]:
            return False
        return request.is_administrator or not self.allow

    def _counts(self, holds: bool | None) -> bool:
        return not self.allow if holds is None else holds


Policy = tuple[Statement, ...]


def is_allowed(policy: Policy, request: AccessRequest) -> bool:
    """Return whether the policy allows the request: some Allow matches and no Deny does."""
    matching = [statement.allow for statement in policy if statement.matches(request)]
    return bool(matching) and all(matching)


def parse_policy(text: str) -> Policy:
    """Parse a policy document.

    Raises:
        PolicyError: not JSON, a duplicate name, an unknown element, or a value of another form.
    """
    if len(text) > MAX_POLICY_CHARS:
        raise PolicyError("policy is too long")
    try:
        document = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as err:
        raise PolicyError("policy is not JSON") from err
    if not isinstance(document, dict) or not document.keys() <= {"Version", "Id", "Statement"}:
        raise PolicyError("policy has an unknown element")
    if document.get("Version") != _VERSION:
        raise PolicyError(f"policy version is not {_VERSION}")
    statements = document.get("Statement")
    return tuple(_statement(each) for each in (statements if isinstance(statements, list) else [statements]))


def _statement(fields: Any) -> Statement:
    if not isinstance(fields, dict) or not fields.keys() <= _STATEMENT_KEYS:
        raise PolicyError("statement has an unknown element")
    if fields.get("Effect") not in ("Allow", "Deny"):
        raise PolicyError("Effect is neither Allow nor Deny")
    conditions = fields.get("Condition", {})
    if not isinstance(conditions, dict) or not all(isinstance(each, dict) for each in conditions.values()):
        raise PolicyError("Condition is not a map of maps")
    return Statement(
        allow=fields["Effect"] == "Allow",
        principals=_principals(fields.get("Principal")),
        actions=_texts(fields.get("Action"), "Action"),
        resources=_texts(fields.get("Resource"), "Resource"),
        conditions=tuple(
            Condition(operator, key, _texts(values, "Condition"))
            for operator, keys in conditions.items()
            for key, values in keys.items()
        ),
    )


def _principals(value: Any) -> tuple[str, ...]:
    if value != "*" and (not isinstance(value, dict) or value.keys() != {"AWS"}):
        raise PolicyError("Principal is not of the kind AWS")
    names = _texts("*" if value == "*" else value["AWS"], "Principal")
    for name in names:
        if _PRINCIPAL.fullmatch(name) is None:
            raise PolicyError("Principal is not *, an account, a user or a role")
    return names


def _texts(value: Any, element: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    texts = tuple(str(each).lower() if isinstance(each, bool) else each for each in values)
    # "${" begins a policy variable, which AWS would replace.
    if not texts or not all(isinstance(text, str) and "${" not in text for text in texts):
        raise PolicyError(f"{element} is not text or a list of texts")
    return texts


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise PolicyError(f"{name} occurs twice")
        found[name] = value
    return found


def _is_like(pattern: str, value: str) -> bool:
    """Match with AWS's two wildcards, * and ?.

    A star takes as little as it can and never gives any back, which changes no answer: the parts between two stars
    fit best where they fit first. Without that, twenty stars would keep the service busy for ever.
    """
    first, *rest = ("".join("." if c == "?" else re.escape(c) for c in part) for part in pattern.split("*"))
    if rest:
        *middle, last = rest
        first += "".join(f"(?>.*?{part})" for part in middle) + f".*{last}"
    return re.fullmatch(first, value, re.DOTALL) is not None


def _is_arn_like(pattern: str, value: str) -> bool:
    """Match part by part: a wildcard does not cross a colon of the first five."""
    wanted, actual = pattern.split(":", _ARN_PARTS - 1), value.split(":", _ARN_PARTS - 1)
    return len(wanted) == len(actual) == _ARN_PARTS and all(map(_is_like, wanted, actual))


def _is_equal(wanted: str, actual: str) -> bool:
    return wanted == actual


def _is_equal_ignoring_case(wanted: str, actual: str) -> bool:
    return wanted.lower() == actual.lower()


#: Operator → (comparison, whether it is negated). AWS: ArnEquals and ArnLike behave identically.
_OPERATORS: Final[Mapping[str, tuple[Callable[[str, str], bool], bool]]] = {
    "StringEquals": (_is_equal, False),
    "StringNotEquals": (_is_equal, True),
    "StringEqualsIgnoreCase": (_is_equal_ignoring_case, False),
    "StringNotEqualsIgnoreCase": (_is_equal_ignoring_case, True),
    "StringLike": (_is_like, False),
    "StringNotLike": (_is_like, True),
    "ArnEquals": (_is_arn_like, False),
    "ArnNotEquals": (_is_arn_like, True),
    "ArnLike": (_is_arn_like, False),
    "ArnNotLike": (_is_arn_like, True),
}
