"""The evaluator of key policies, as a pure function."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.key_policy import AccessRequest, PolicyError, is_allowed, parse_policy

ROLE: Final = "arn:aws:iam::777788889999:role/mrgc-worker"
USER: Final = "arn:aws:iam::111122223333:user/acme"
KEY: Final = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
IMAGE: Final = "kms:RecipientAttestation:ImageSha384"


def policy(*statements: dict[str, Any]) -> str:
    """Return policy text of statements that, unless they say otherwise, allow the role to decrypt."""
    base = {"Effect": "Allow", "Principal": {"AWS": ROLE}, "Action": "kms:Decrypt", "Resource": "*"}
    return json.dumps({"Version": "2012-10-17", "Statement": [base | each for each in statements]})


def allowed(text: str, *, principal: str = ROLE, action: str = "kms:Decrypt", **conditions: str) -> bool:
    """Evaluate one request; `conditions` are given with __ for the colon."""
    values = {name.replace("__", ":"): value for name, value in conditions.items()}
    return is_allowed(parse_policy(text), AccessRequest(principal, action, KEY, values))


def test_nothing_is_allowed_by_default() -> None:
    """A policy without a matching statement denies."""
    assert not allowed(policy({"Principal": {"AWS": USER}}))
    assert not allowed(policy({"Action": "kms:Encrypt"}))
    assert not allowed(policy({"Resource": KEY[:-1] + "c"}))
    assert not allowed(json.dumps({"Version": "2012-10-17", "Statement": []}))


def test_a_matching_allow_allows() -> None:
    """Principal, action and resource match alone, in lists, and with wildcards."""
    for change in (
        {},
        {"Principal": "*"},
        {"Principal": {"AWS": "*"}},
        {"Principal": {"AWS": [USER, ROLE]}},
        {"Action": "kms:*"},
        {"Action": "*"},
        {"Action": ["kms:Encrypt", "kms:De*"]},
        {"Action": "KMS:decrypt"},
        {"Action": "kms:Decryp?"},
        {"Resource": KEY},
        {"Resource": KEY[:40] + "*"},
    ):
        assert allowed(policy(change)), change


def test_an_explicit_deny_wins() -> None:
    """No number of Allows overrides a Deny, in either order."""
    deny = {"Effect": "Deny"}
    assert not allowed(policy({}, deny, {}))
    assert not allowed(policy(deny, {}))


def test_wildcards_are_only_star_and_question_mark() -> None:
    """Brackets and dots are literal; a value is matched as a whole."""
    for action in ("kms:Decryp[t]", "kms.Decrypt", "kms:Decryp", "kms:DecryptX", "kms:Decrypt??"):
        assert not allowed(policy({"Action": action})), action


@pytest.mark.parametrize(
    ("operator", "wanted", "actual", "holds"),
    [
        ("StringEquals", "abc", "abc", True),
        ("StringEquals", "abc", "ABC", False),
        ("StringEquals", ["x", "abc"], "abc", True),
        ("StringEquals", "a*", "abc", False),
        ("StringEquals", "abc", None, False),
        ("StringNotEquals", "abc", "abd", True),
        ("StringNotEquals", ["abd", "abc"], "abd", False),
        ("StringNotEquals", "abc", None, True),
        ("StringEqualsIgnoreCase", "ABC", "abc", True),
        ("StringEqualsIgnoreCase", "ABC", None, False),
        ("StringNotEqualsIgnoreCase", "ABC", "abc", False),
        ("StringNotEqualsIgnoreCase", "ABC", "abd", True),
        ("StringNotEqualsIgnoreCase", "ABC", None, True),
        ("StringLike", "a*c", "abbc", True),
        ("StringLike", "a?c", "abbc", False),
        ("StringLike", "a*", None, False),
        ("StringNotLike", "a*", "b", True),
        ("StringNotLike", "a*", None, True),
        ("Null", "true", None, True),
        ("Null", "true", "x", False),
        ("Null", True, None, True),
        ("Null", "false", "x", True),
        ("Null", "false", None, False),
    ],
)
def test_operators_follow_awss_rules(operator: str, wanted: Any, actual: str | None, holds: bool) -> None:
    """Each operator, with the key present and absent, in an Allow and in a Deny."""
    condition = {"Condition": {operator: {"kms:EncryptionContext:k": wanted}}}
    present = {} if actual is None else {"kms__EncryptionContext__k": actual}
    assert allowed(policy(condition), **present) is holds
    assert allowed(policy({}, {"Effect": "Deny", **condition}), **present) is not holds


@pytest.mark.parametrize("operator", ["ArnEquals", "ArnLike"])
def test_arns_match_part_by_part(operator: str) -> None:
    """A wildcard in an ARN does not cross a colon."""
    for wanted, holds in (
        (ROLE, True),
        ("arn:aws:iam::777788889999:role/*", True),
        ("arn:aws:iam::*:role/mrgc-worker", True),
        ("arn:*", False),
        ("*", False),
        ("arn:aws:iam::*", False),
        (USER, False),
    ):
        condition = {operator: {"aws:PrincipalArn": wanted}}
        assert allowed(policy({"Principal": "*", "Condition": condition})) is holds, wanted
        negated = {operator.replace("Arn", "ArnNot"): {"aws:PrincipalArn": wanted}}
        assert allowed(policy({"Principal": "*", "Condition": negated})) is not holds, wanted


@pytest.mark.parametrize(
    "condition",
    [
        {"NumericEquals": {IMAGE: "1"}},
        {"StringEqualsIfExists": {IMAGE: "x"}},
        {"ForAnyValue:StringEquals": {IMAGE: "x"}},
        {"NotStringEquals": {IMAGE: "x"}},
        {"stringequals": {IMAGE: "x"}},
        {"StringNotEquals": {"aws:SourceIp": "x"}},
        {"StringNotEquals": {"kms:RecipientAttestation:PCR32": "x"}},
        {"StringNotEquals": {"kms:RecipientAttestation:NitroTPMPCR4": "x"}},
        {"StringNotEquals": {"kms:EncryptionContext:": "x"}},
        {"Null": {"kms:ViaService": "true"}},
    ],
)
def test_an_unknown_operator_or_key_is_taken_against_the_caller(condition: dict[str, Any]) -> None:
    """An Allow with it does not match, a Deny with it does, whatever the operator might mean."""
    image = {"kms__RecipientAttestation__ImageSha384": "x"}
    assert not allowed(policy({"Condition": condition}), **image)
    assert not allowed(policy({}, {"Effect": "Deny", "Condition": condition}), **image)


def test_a_deny_with_a_known_condition_that_fails_does_not_match() -> None:
    """The unknown makes a Deny match only together with its other conditions."""
    condition = {"StringEquals": {"kms:EncryptionContext:k": "other"}, "Unknown": {IMAGE: "x"}}
    assert allowed(policy({}, {"Effect": "Deny", "Condition": condition}), kms__EncryptionContext__k="k")


def test_all_conditions_of_a_statement_must_hold() -> None:
    """Keys and operators are a conjunction, values an alternative."""
    condition = {
        "StringEquals": {"kms:EncryptionContext:a": ["1", "2"], "kms:EncryptionContext:b": "3"},
        "StringEqualsIgnoreCase": {IMAGE: "FF"},
    }
    good = {
        "kms__EncryptionContext__a": "2",
        "kms__EncryptionContext__b": "3",
        "kms__RecipientAttestation__ImageSha384": "ff",
    }
    assert allowed(policy({"Condition": condition}), **good)
    for name in good:
        assert not allowed(policy({"Condition": condition}), **good | {name: "no"})
        assert not allowed(policy({"Condition": condition}), **{key: good[key] for key in good if key != name})


def test_an_account_delegates_to_nobody_and_denies_to_all_of_it() -> None:
    """Without IAM policies an account's Allow reaches no principal, and its Deny reaches each of them."""
    for account in ("arn:aws:iam::777788889999:root", "777788889999"):
        assert not allowed(policy({"Principal": {"AWS": account}}))
        assert not allowed(policy({}, {"Effect": "Deny", "Principal": {"AWS": account}}))
        assert allowed(
            policy({"Principal": {"AWS": USER}}, {"Effect": "Deny", "Principal": {"AWS": account}}), principal=USER
        )


def test_an_account_delegates_to_its_administrators() -> None:
    """What a policy leaves to an account, those of its principals may whose own IAM policies say so."""
    text = policy({"Principal": {"AWS": "arn:aws:iam::777788889999:root"}})
    for principal, holds in ((ROLE, True), (USER, False)):
        request = AccessRequest(principal, "kms:Decrypt", KEY, {}, is_administrator=True)
        assert is_allowed(parse_policy(text), request) is holds
    denied = policy({"Principal": {"AWS": "777788889999"}}, {"Effect": "Deny"})
    assert not is_allowed(parse_policy(denied), AccessRequest(ROLE, "kms:Decrypt", KEY, {}, is_administrator=True))


@pytest.mark.parametrize(
    "change",
    [
        {"Effect": "allow"},
        {"Effect": None},
        {"Effect": []},
        {"NotAction": "kms:Decrypt"},
        {"NotPrincipal": {"AWS": USER}},
        {"NotResource": "*"},
        {"Principal": {"Service": "ec2.amazonaws.com"}},
        {"Principal": {"AWS": ROLE, "Federated": "x"}},
        {"Principal": {"AWS": "arn:aws:iam::777788889999:role/*"}},
        {"Principal": {"AWS": []}},
        {"Principal": ROLE},
        {"Principal": None},
        {"Action": []},
        {"Action": None},
        {"Action": {"kms:Decrypt": True}},
        {"Resource": None},
        {"Condition": []},
        {"Condition": {"StringEquals": "x"}},
        {"Condition": {"StringEquals": {IMAGE: 1}}},
        {"Condition": {"StringEquals": {IMAGE: []}}},
        {"Condition": {"StringEquals": {IMAGE: "${aws:username}"}}},
        {"Surprise": 1},
    ],
)
def test_a_statement_that_is_not_understood_refuses_the_policy(change: dict[str, Any]) -> None:
    """A policy is taken as a whole or not at all."""
    with pytest.raises(PolicyError):
        parse_policy(policy(change))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"Version": "2008-10-17", "Statement": []}',
        '{"Version": "2012-10-17"}',
        '{"Version": "2012-10-17", "Statement": [], "Surprise": 1}',
        '{"Version": "2012-10-17", "Statement": [], "Statement": []}',
        '{"Version": "2012-10-17", "Statement": [' + " " * 32_768 + "]}",
        "[" * 10_000,
    ],
)
def test_a_text_that_is_no_policy_is_refused(text: str) -> None:
    """Wrong JSON, duplicate names, another version, unknown elements, too long or too deep."""
    with pytest.raises(PolicyError):
        parse_policy(text)


@given(st.lists(st.sampled_from(["Allow", "Deny"]), max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_statements_does_not_matter(effects: list[str], random: Any) -> None:
    """A request is allowed exactly if some matching statement allows and none denies."""
    shuffled = effects.copy()
    random.shuffle(shuffled)
    expected = "Allow" in effects and "Deny" not in effects
    for order in (effects, shuffled):
        assert allowed(policy(*({"Effect": effect} for effect in order))) is expected
