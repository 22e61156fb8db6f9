"""Key policies as a reviewer reads them: whatever a statement may allow, it allows; what is unclear denies nothing.

The opposite of an evaluator that guards a key, which takes the unknown against the caller: here it is taken against
the policy. AWS: IAM User Guide, "IAM JSON policy elements reference"; KMS Developer Guide, "Condition keys for AWS
Nitro Enclaves". Called by `mrgc.policy_review`. May import: the standard library, mrgc.errors, mrgc.policy,
mrgc.wire.strict_json.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mrgc.errors import FormatError
from mrgc.policy import IMAGE_CONDITION, PCR_CONDITION
from mrgc.wire import strict_json

#: AWS KMS API Reference, PutKeyPolicy: longest policy text.
MAX_POLICY_BYTES: Final = 32_768
ANYONE: Final = "*"

ATTESTATION: Final = "kms:RecipientAttestation:"
#: Two names of one register.
IMAGE_KEYS: Final = (IMAGE_CONDITION, PCR_CONDITION.format(0))
#: Operators that hold for listed values and nothing else.
EXACT: Final = ("StringEquals", "StringEqualsIgnoreCase")

#: These fail when the call has no document. …IfExists, ForAllValues: and the negated ones do not.
_DEMANDING: Final = (*EXACT, "StringLike")
_NEGATED: Final = ("StringNotEquals", "StringNotEqualsIgnoreCase")
_PRINCIPAL_IS: Final = ("ArnEquals", "ArnLike", "StringEquals", "StringLike")
_PRINCIPAL_ARN: Final = "aws:PrincipalArn"

_MAX_VALUES: Final = 10_000
_ACCOUNT: Final = re.compile(r"(?:arn:aws[a-z-]*:iam::)?([0-9]{12})(?::root)?")
_ARN_ACCOUNT: Final = re.compile(r"arn:aws[a-z-]*:(?:iam|sts)::([0-9]{12}):.*")


@dataclass(frozen=True, slots=True)
class Condition:
    """One operator on one condition key; its values are alternatives."""

    operator: str
    key: str
    values: frozenset[str]


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, its Not-elements already widened (Allow) or narrowed (Deny) to what is certain."""

    sid: str
    allows: bool
    principals: tuple[str, ...]
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    conditions: tuple[Condition, ...]

    def has(self, action: str) -> bool:
        """Return whether the statement names the action, itself or by a wildcard."""
        return any(is_like(pattern.lower(), action.lower()) for pattern in self.actions)

    def covers(self, key_arn: str) -> bool:
        """Return whether the statement is about this key; AWS ignores the others."""
        return any(is_like(pattern, key_arn) for pattern in self.resources)

    def names(self, principal: str) -> bool:
        """Return whether the statement names the principal, its account, or everyone."""
        account = account_of(principal)
        return any(each in (ANYONE, principal) or (account and each == account) for each in self.principals)

    def values(self, key: str, operators: Sequence[str]) -> frozenset[str]:
        """Return the alternatives of a condition key under one of the operators; empty when there is no such one."""
        found = (each.values for each in self.conditions if each.key == key and each.operator in operators)
        return next(found, frozenset())

    @property
    def is_attested(self) -> bool:
        """Return whether an Allow cannot match a call without a document, be it an enclave's or a NitroTPM's."""
        return any(
            each.key.startswith(ATTESTATION)
            and (each.operator in _DEMANDING or (each.operator == "Null" and each.values == {"false"}))
            for each in self.conditions
        )

    @property
    def images(self) -> frozenset[str]:
        """Return the PCR0 values that an Allow pins, in lower case; empty when it pins none exactly."""
        return frozenset(value.lower() for key in IMAGE_KEYS for value in self.values(key, EXACT))

    @property
    def is_limited(self) -> bool:
        """Return whether a Deny is for some principals only, though it may name everyone."""
        return any(each.key == _PRINCIPAL_ARN for each in self.conditions)

    def spared_images(self, role: str) -> frozenset[str] | None:
        """Return the PCR0 values with which a Deny lets a role pass; None when it lets the role pass otherwise, too."""
        spared: set[str] = set()
        for each in self.conditions:
            if each.operator in _NEGATED and each.key in IMAGE_KEYS:
                spared.update(value.lower() for value in each.values)
            elif each.operator not in _PRINCIPAL_IS or each.key != _PRINCIPAL_ARN or role not in each.values:
                return None  # narrower than the role, or not known to be as wide
        return frozenset(spared) if self.names(role) else None


def parse_statements(text: str) -> tuple[Statement, ...]:
    """Read a policy text.

    Raises:
        FormatError: not a policy document that AWS would have taken.
    """
    data = text.encode(errors="surrogatepass")  # a lone surrogate is refused below, as a form
    if len(data) > MAX_POLICY_BYTES:
        raise FormatError("key policy is too long")
    document = strict_json.parse(data, max_values=_MAX_VALUES)
    statements = document.get("Statement") if isinstance(document, dict) else None
    if isinstance(statements, dict):
        statements = [statements]
    if not isinstance(statements, list) or not all(isinstance(each, dict) for each in statements):
        raise FormatError("key policy has no statements")
    return tuple(_statement(each) for each in statements)


def account_of(principal: str) -> str | None:
    """Return the account of a principal's ARN; None for what has none."""
    matched = _ARN_ACCOUNT.fullmatch(principal)
    return matched[1] if matched else None


def is_like(pattern: str, value: str) -> bool:
    """Match with AWS's two wildcards, * and ?.

    A star takes as little as it can and never gives any back, which changes no answer: the parts between two stars
    fit best where they fit first. Without that, a policy with twenty stars could not be reviewed in a lifetime.
    """
    first, *rest = ("".join("." if c == "?" else re.escape(c) for c in part) for part in pattern.split("*"))
    if rest:
        *middle, last = rest
        first += "".join(f"(?>.*?{part})" for part in middle) + f".*{last}"
    return re.fullmatch(first, value, re.DOTALL) is not None


def principal_of(name: str) -> str:
    """Return one spelling for an account's root, which policies name as an ARN or as 12 digits."""
    matched = _ACCOUNT.fullmatch(name)
    return matched[1] if matched else name


def _statement(fields: Mapping[str, Any]) -> Statement:
    effect, sid = fields.get("Effect"), fields.get("Sid", "")
    allows = effect == "Allow"
    if not (allows or effect == "Deny") or not isinstance(sid, str):
        raise FormatError("key policy has a statement without effect")
    return Statement(
        sid=sid,
        allows=allows,
        principals=tuple(_principals(fields.get("Principal"))) or _unclear(allows),
        actions=_texts(fields.get("Action", [])) or _unclear(allows),
        resources=_texts(fields.get("Resource", [])) or _unclear(allows),
        conditions=tuple(_conditions(fields.get("Condition", {}))),
    )


def _unclear(allows: bool) -> tuple[str, ...]:
    """Stand in for NotPrincipal, NotAction and NotResource: an Allow reaches all, a Deny is sure of none."""
    return (ANYONE,) if allows else ()


def _principals(value: Any) -> Iterator[str]:
    if value == ANYONE:
        yield ANYONE
    elif isinstance(value, dict):
        for kind, names in value.items():
            for name in _texts(names):
                yield principal_of(name) if kind == "AWS" else f"{kind} {name}"
    elif value is not None:
        raise FormatError("key policy has a principal of no known kind")


def _conditions(value: Any) -> Iterator[Condition]:
    if not isinstance(value, dict) or not all(isinstance(keys, dict) for keys in value.values()):
        raise FormatError("key policy has a condition that is not a map of maps")
    for operator, keys in value.items():
        for key, values in keys.items():
            yield Condition(operator, key, frozenset(_texts(values)))


def _texts(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str | bool | int) for each in values):
        raise FormatError("key policy has an element that is not text")
    return tuple(str(each).lower() if isinstance(each, bool) else str(each) for each in values)
