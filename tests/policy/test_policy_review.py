"""The review of a key's policy: what it finds, that it finds nothing in what is written here, and that it is sound."""

from __future__ import annotations

import itertools
import json
from contextlib import suppress
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infra.key_policy import AccessRequest, is_allowed, parse_policy
from mrgc.errors import FormatError
from mrgc.policy import IMAGE_CONDITION, TENANT_ACTIONS
from mrgc.policy_review import DANGEROUS, Expected, Grant, Review, review
from tests.policy.terms import (
    ATTESTED,
    BARE,
    KEY,
    OTHER,
    PCR0,
    PCRS,
    SERVICE,
    TENANT,
    TOLD,
    allow,
    edited,
    generated,
    text,
)

ZERO: Final = "00" * 48
IMAGE: Final = {"StringEqualsIgnoreCase": {IMAGE_CONDITION: PCR0}}
JOB: Final = {"StringEquals": {"kms:EncryptionContext:mrgc:tenant": "acme", "kms:EncryptionContext:mrgc:use": "job"}}
BOTH: Final = [BARE, TOLD]
DENY: Final = "NothingWithoutAttestation"
OPENS: Final = "EnclaveOpensJobs"


def codes(policy: str, expected: Expected = TOLD, grants: tuple[Grant, ...] = ()) -> list[str]:
    """Return the codes of what a review finds."""
    return [finding.code for finding in review(policy, grants, expected).findings]


def attested(**values: Any) -> dict[str, Any]:
    """Return the job's conditions with this equality on attestation keys."""
    return {
        **JOB,
        "StringEqualsIgnoreCase": {f"kms:RecipientAttestation:{name}": each for name, each in values.items()},
    }


# --- what is written here has no findings -------------------------------------------------------------------------


@pytest.mark.parametrize("expected", BOTH, ids=["told nothing", "told everything"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"key_arn": KEY},
        {"further_pcrs": {8: PCRS[8]}},
        {"further_pcrs": {3: PCRS[3], 4: PCRS[4], 8: PCRS[8]}},
        {"tenant_principal": "arn:aws:iam::111122223333:user/acme"},
    ],
)
def test_nothing_loosens_a_generated_policy(expected: Expected, changes: dict[str, Any]) -> None:
    """The generator and the review agree, whether or not the reviewer says who is who."""
    told = expected if expected is BARE else Expected(
        key_arn=KEY, tenant="acme", service_role=SERVICE, pcrs=PCRS,
        tenant_principal=changes.get("tenant_principal", TENANT),
    )  # fmt: skip
    found = review(text(policy=generated(**changes)), [], told)
    assert found.findings == ()
    assert found.tenant_principal == changes.get("tenant_principal", TENANT)
    assert found.service_role == SERVICE
    assert found.images == (PCR0,)


@pytest.mark.parametrize("name", ["arn:aws:iam::111122223333:root", "111122223333"])
def test_an_account_may_hold_the_key(name: str) -> None:
    """Both spellings of an account are one principal; that IAM decides within it is noted."""
    policy = text(policy=generated(tenant_principal="arn:aws:iam::111122223333:root")).replace(
        "arn:aws:iam::111122223333:root", name
    )
    for told in (None, "111122223333", "arn:aws:iam::111122223333:root"):
        found = review(policy, [], Expected(key_arn=KEY, tenant="acme", tenant_principal=told))
        assert found.findings == ()
        assert any("111122223333 as a whole" in note for note in found.notes)


def test_the_json_protocol_is_a_finding_unless_it_is_wanted() -> None:
    """What `--json-protocol` writes is accepted from who says so, and only from him."""
    policy = text(policy=generated(json_protocol=True))
    assert codes(policy) == ["json_protocol", "json_protocol"]
    wanted = Expected(key_arn=KEY, tenant="acme", service_role=SERVICE, pcrs=PCRS, json_protocol=True)
    assert codes(policy, wanted) == []
    assert codes(text(), wanted) == []


def test_statements_that_hurt_nobody_are_left_alone() -> None:
    """Others may describe the key, and may be denied everything."""
    assert codes(text(allow({"AWS": OTHER}, ["kms:DescribeKey", "kms:GetPublicKey", "kms:List*"]))) == []
    assert codes(text(allow({"AWS": OTHER}, "kms:*", Effect="Deny"))) == []
    elsewhere = KEY[:-1] + "c"
    assert codes(text(allow({"AWS": OTHER}, "kms:*", Resource=elsewhere))) == []


# --- what is found ------------------------------------------------------------------------------------------------

LOOSENED: Final[dict[str, tuple[str, list[str]]]] = {
    "another role decrypts": (text(allow({"AWS": OTHER}, "kms:Decrypt")), ["other_principal"]),
    "another role generates": (text(allow({"AWS": OTHER}, "kms:GenerateDataKey")), ["other_principal"]),
    "another role generates without plaintext": (
        text(allow({"AWS": OTHER}, "kms:GenerateDataKeyWithoutPlaintext")), ["other_principal"],
    ),
    "another role re-encrypts": (text(allow({"AWS": OTHER}, "kms:ReEncrypt*")), ["other_principal"]),
    "another role grants": (text(allow({"AWS": OTHER}, "kms:CreateGrant")), ["other_principal"]),
    "another role replicates": (text(allow({"AWS": OTHER}, "kms:ReplicateKey")), ["other_principal"]),
    "another role by a wildcard": (text(allow({"AWS": OTHER}, "kms:?ecrypt")), ["other_principal"]),
    "another role in small letters": (text(allow({"AWS": OTHER}, "KMS:decrypt")), ["other_principal"]),
    "another role by every action": (text(allow({"AWS": OTHER}, "*")), ["other_principal"]),
    "another account": (text(allow({"AWS": "444455556666"}, "kms:Decrypt")), ["other_principal"]),
    "the tenant's account beside its role": (
        text(allow({"AWS": "arn:aws:iam::111122223333:root"}, "kms:Decrypt")), ["other_principal"],
    ),
    "two principals, one the tenant": (text(allow({"AWS": [TENANT, OTHER]}, "kms:Encrypt")), ["other_principal"]),
    "a service": (text(allow({"Service": "logs.amazonaws.com"}, "kms:Decrypt")), ["other_principal"]),
    "a federated user": (text(allow({"Federated": "idp.example"}, "kms:Decrypt")), ["other_principal"]),
    "a deleted role": (text(allow({"AWS": "AROAEXAMPLEID"}, "kms:Decrypt")), ["other_principal"]),
    "all but the actions of a list": (
        text(allow({"AWS": OTHER}, None) | {"NotAction": "kms:Encrypt"}).replace('"Action": null, ', ""),
        ["other_principal"],
    ),
    "all but one principal": (
        text(allow(None, "kms:Decrypt") | {"NotPrincipal": {"AWS": OTHER}}).replace('"Principal": null, ', ""),
        ["wildcard_principal"],
    ),
    "anyone": (text(allow("*", "kms:Decrypt")), ["wildcard_principal"]),
    "anyone of AWS": (text(allow({"AWS": "*"}, "kms:Decrypt")), ["wildcard_principal"]),
    "anyone, under a condition": (
        text(allow("*", "kms:Decrypt", {"StringEquals": {"kms:CallerAccount": "777788889999"}})),
        ["wildcard_principal"],
    ),
    "anyone who attests": (edited(OPENS, Principal={"AWS": "*"}), ["wildcard_principal"]),
    "another role that attests": (edited(OPENS, Principal={"AWS": [SERVICE, OTHER]}), ["other_principal", "no_deny"]),
    "the service without attestation": (text(allow({"AWS": SERVICE}, "kms:Decrypt", JOB)), ["unattested"]),
    "the service encrypts": (text(allow({"AWS": SERVICE}, "kms:Encrypt")), ["unattested"]),
    "no conditions": (edited(OPENS, Condition=None), ["unattested"]),
    "image only if there is one": (
        edited(OPENS, Condition={**JOB, "StringEqualsIfExists": {IMAGE_CONDITION: PCR0}}), ["unattested"],
    ),
    "image of all values, of which there are none": (
        edited(OPENS, Condition={**JOB, "ForAllValues:StringEquals": {IMAGE_CONDITION: PCR0}}), ["unattested"],
    ),
    "image negated": (edited(OPENS, Condition={**JOB, "StringNotEquals": {IMAGE_CONDITION: ZERO}}), ["unattested"]),
    "any document": (
        edited(OPENS, Condition={**JOB, "Null": {IMAGE_CONDITION: False}}), ["image_not_pinned"],
    ),
    "no document": (edited(OPENS, Condition={**JOB, "Null": {IMAGE_CONDITION: True}}), ["unattested"]),
    "image by wildcard": (
        edited(OPENS, Condition={**JOB, "StringLike": {IMAGE_CONDITION: "a0*"}}), ["image_not_pinned"],
    ),
    "PCR3 alone": (edited(OPENS, Condition=attested(PCR3=PCRS[3].hex())), ["parent_only"]),
    "PCR4 alone": (edited(OPENS, Condition=attested(PCR4=PCRS[4].hex())), ["parent_only"]),
    "PCR3 and PCR4 alone": (
        edited(OPENS, Condition=attested(PCR3=PCRS[3].hex(), PCR4=PCRS[4].hex())), ["parent_only"],
    ),
    "PCR8 alone": (edited(OPENS, Condition=attested(PCR8=PCRS[8].hex())), ["image_not_pinned"]),
    "PCR2 alone": (edited(OPENS, Condition=attested(PCR2=PCRS[2].hex())), ["image_not_pinned"]),
    "NitroTPM": (
        edited(OPENS, Condition=attested(NitroTPMPCR4=PCRS[4].hex())), ["image_not_pinned"],
    ),
    "PCR0 = 0": (edited(OPENS, Condition=attested(ImageSha384=ZERO)), ["zero_pcr"]),
    "PCR0 = 0 as a second value": (edited(OPENS, Condition=attested(ImageSha384=[PCR0, ZERO])), ["zero_pcr"]),
    "PCR0 = 0 by its other name": (edited(OPENS, Condition=attested(PCR0=ZERO)), ["zero_pcr"]),
    "PCR2 in the place of PCR0": (
        edited(OPENS, Condition=attested(ImageSha384=PCRS[2].hex())), ["other_image"],
    ),
    "a second image": (edited(OPENS, Condition=attested(ImageSha384=[PCR0, "0f" * 48])), ["other_image"]),
    "no context": (edited(OPENS, Condition=IMAGE), ["no_context", "no_context"]),
    "no tenant": (
        edited(OPENS, Condition={**IMAGE, "StringEquals": {"kms:EncryptionContext:mrgc:use": "job"}}), ["no_context"],
    ),
    "another tenant": (text().replace('"acme"', '"other"'), ["no_context"]),
    "any tenant": (
        edited(OPENS, Condition={**attested(ImageSha384=PCR0), "StringLike": {}}).replace('"acme"', '["acme", "x"]'),
        ["no_context"],
    ),
    "no use": (
        edited(OPENS, Condition={**IMAGE, "StringEquals": {"kms:EncryptionContext:mrgc:tenant": "acme"}}),
        ["no_context"],
    ),
    "uses by wildcard": (
        edited(OPENS, Condition={
            **IMAGE,
            "StringEquals": {"kms:EncryptionContext:mrgc:tenant": "acme"},
            "StringLike": {"kms:EncryptionContext:mrgc:use": "*"},
        }),
        ["no_context"],
    ),
    "payloads in the job's statement": (text().replace('"job"', '["job", "payload"]'), ["json_protocol"]),
    "attested data keys for jobs": (edited(OPENS, Action=["kms:Decrypt", "kms:GenerateDataKey"]), ["other_action"]),
    "attested everything": (edited(OPENS, Action="kms:*"), ["other_action", "other_action"]),
    "no Deny": (text(without=DENY), ["no_deny"]),
    "Deny for another role": (edited(DENY, Condition={
        "StringNotEqualsIgnoreCase": {IMAGE_CONDITION: PCR0}, "ArnEquals": {"aws:PrincipalArn": OTHER},
    }), ["no_deny"]),
    "Deny of Decrypt only": (edited(DENY, Action="kms:Decrypt"), ["no_deny"]),
    "Deny of all but Decrypt": (edited(DENY, Action=None, NotAction="kms:Decrypt"), ["no_deny"]),
    "Deny that names another key": (edited(DENY, Resource=KEY[:-1] + "c"), ["no_deny"]),
    "Deny for who attests otherwise only": (
        edited(DENY, Condition={
            "StringNotEqualsIgnoreCase": {IMAGE_CONDITION: PCR0},
            "Null": {IMAGE_CONDITION: "false"},
            "ArnEquals": {"aws:PrincipalArn": SERVICE},
        }), ["no_deny"],
    ),
    "Deny of two registers at once": (
        edited(DENY, Condition={
            "StringNotEqualsIgnoreCase": {IMAGE_CONDITION: PCR0, "kms:RecipientAttestation:PCR8": PCRS[8].hex()},
            "ArnEquals": {"aws:PrincipalArn": SERVICE},
        }), ["no_deny"],
    ),
    "Deny under another condition": (
        edited(DENY, Condition={
            "StringNotEqualsIgnoreCase": {IMAGE_CONDITION: PCR0}, "StringEquals": {"kms:ViaService": "x"},
        }), ["no_deny"],
    ),
    "Deny that spares debug mode": (
        edited(DENY, Condition={
            "StringNotEqualsIgnoreCase": {IMAGE_CONDITION: [PCR0, ZERO]}, "ArnEquals": {"aws:PrincipalArn": SERVICE},
        }), ["weak_deny"],
    ),
    "Deny that spares a second image by another operator": (
        edited(DENY, Condition={
            "StringNotEqualsIgnoreCase": {IMAGE_CONDITION: PCR0},
            "StringNotEquals": {"kms:RecipientAttestation:PCR0": "0f" * 48},
            "ArnEquals": {"aws:PrincipalArn": SERVICE},
        }), ["weak_deny"],
    ),
    "the tenant may grant": (text(allow({"AWS": TENANT}, "kms:CreateGrant")), ["delegation"]),
    "the tenant may do everything": (
        edited("TenantOwnsTheKey", Action="kms:*"), ["delegation"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOSENED)
def test_what_loosens_a_policy_is_found(name: str) -> None:
    """Statement 6: as docs/spec.md §7 has it, each edit of a good policy is found, and found to be nothing else."""
    policy, found = LOOSENED[name]
    assert codes(policy) == found


@pytest.mark.parametrize("name", sorted(LOOSENED.keys() - {"a second image", "PCR2 in the place of PCR0"}))
def test_it_is_found_by_a_reviewer_who_says_nothing(name: str) -> None:
    """Without being told who is who, the review finds something in each of them; only images need to be known."""
    assert codes(LOOSENED[name][0], BARE)


def test_findings_name_their_statement_and_what_is_wrong() -> None:
    """A person finds the statement by its Sid, and reads who may do what."""
    (found,) = review(text(allow({"AWS": OTHER}, ["kms:Decrypt", "kms:CreateGrant"])), [], TOLD).findings
    assert found.sid == "Added"
    assert found.text == f"{OTHER} may CreateGrant, Decrypt without attestation"
    swapped = review(LOOSENED["PCR2 in the place of PCR0"][0], [], TOLD).findings[0]
    assert "is not the expected PCR0 but PCR2" in swapped.text


def test_every_grant_is_a_finding() -> None:
    """The generated policy lets nobody make one, so each is a surprise."""
    grants = (Grant(OTHER, ("Decrypt", "GenerateDataKey")), Grant(SERVICE, ("DescribeKey",)))
    found = review(text(), grants, TOLD).findings
    assert [each.code for each in found] == ["grant", "grant"]
    assert OTHER in found[0].text
    assert "Decrypt, GenerateDataKey" in found[0].text


def test_the_policy_that_aws_gives_to_a_new_key_is_loose() -> None:
    """The default: the account may do everything, by IAM; no enclave is admitted."""
    default = {
        "Version": "2012-10-17",
        "Id": "key-default-1",
        "Statement": [allow({"AWS": "arn:aws:iam::111122223333:root"}, "kms:*", Sid="Enable IAM User Permissions")],
    }
    found = review(json.dumps(default), [], BARE)
    assert [each.code for each in found.findings] == ["delegation"]
    assert "no statement admits an enclave" in found.notes
    assert review(json.dumps(default), [], TOLD).findings[-1].code == "no_deny"


def test_an_often_seen_policy_is_found_out() -> None:
    """PCR2 as the image, Encrypt under attestation, no context, no Deny: docs/key-policy.md."""
    often = {
        "Version": "2012-10-17",
        "Statement": [
            allow({"AWS": "arn:aws:iam::111122223333:root"}, "kms:*", Sid="Owner"),
            allow(
                {"AWS": SERVICE},
                ["kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey"],
                {"StringEqualsIgnoreCase": {IMAGE_CONDITION: PCRS[2].hex()}},
                Sid="Enclave",
            ),
        ],
    }
    found = review(json.dumps(often), [], Expected(key_arn=KEY, tenant="acme", pcrs=PCRS))
    assert [each.code for each in found.findings] == [
        "delegation", "other_image", "no_context", "no_context", "other_action", "no_deny",
    ]  # fmt: skip
    assert "Enclave: Encrypt takes no attestation document, so is never allowed" in found.notes


def test_two_who_may_change_the_policy_are_both_shown_to_a_reviewer_who_does_not_say_which_he_is() -> None:
    """Who the tenant is cannot be guessed then; told, only the other one remains."""
    policy = text(allow({"AWS": OTHER}, "kms:PutKeyPolicy"))
    assert codes(policy, BARE) == ["other_principal", "other_principal"]
    assert codes(policy, TOLD) == ["other_principal"]


def test_notes_say_what_surprises_and_loosens_nothing() -> None:
    """A Deny that reaches the tenant, an image that was not compared, replicas."""
    everyone = edited(DENY, Condition={"StringNotEqualsIgnoreCase": {IMAGE_CONDITION: PCR0}})
    found = review(everyone, [], TOLD)
    assert found.findings == ()
    assert any("keeps the tenant from its own results" in note for note in found.notes)
    assert review(text(), [], TOLD).notes == ()
    assert any("--pcrs" in note for note in review(text(), [], BARE).notes)
    replicated = KEY.rpartition("/")[0] + "/mrk-" + "0" * 32
    assert any("replica" in note for note in review(text(), [], Expected(key_arn=replicated, tenant="acme")).notes)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "[]",
        "{}",
        '{"Statement": "x"}',
        '{"Statement": ["x"]}',
        '{"Statement": [{}]}',
        '{"Statement": [{"Effect": "allow"}]}',
        '{"Statement": [{"Effect": "Allow", "Sid": 1}]}',
        '{"Statement": [{"Effect": "Allow", "Principal": "x"}]}',
        '{"Statement": [{"Effect": "Allow", "Principal": ["*"]}]}',
        '{"Statement": [{"Effect": "Allow", "Action": {}}]}',
        '{"Statement": [{"Effect": "Allow", "Condition": []}]}',
        '{"Statement": [{"Effect": "Allow", "Condition": {"Null": "x"}}]}',
        '{"Statement": [], "Statement": []}',
        '{"Statement": [' + " " * 32_768 + "]}",
        '{"Statement": [], "Id": "\ud800"}',
    ],
)
def test_a_text_that_is_no_policy_is_not_judged(wrong: str) -> None:
    """KMS never answers such a text; no verdict is given on it."""
    with pytest.raises(FormatError):
        review(wrong, [], BARE)


# --- soundness ----------------------------------------------------------------------------------------------------

NAMES: Final = st.sampled_from([TENANT, SERVICE, OTHER, "*", "444455556666", "arn:aws:iam::777788889999:root"])
KEYS: Final = st.sampled_from(
    [*ATTESTED, "kms:RecipientAttestation:PCR3", "kms:RecipientAttestation:PCR8", "aws:PrincipalArn", "kms:ViaService"]
)
OPERATORS: Final = st.sampled_from(
    [
        "StringEquals", "StringEqualsIgnoreCase", "StringNotEquals", "StringNotEqualsIgnoreCase", "StringLike",
        "StringEqualsIfExists", "ForAllValues:StringEquals", "Null", "ArnEquals", "ArnNotEquals", "ArnLike",
    ]
)  # fmt: skip
VALUES: Final = st.sampled_from([PCR0, ZERO, "acme", "job", "payload", "other", "*", "true", "false", SERVICE, OTHER])
CONDITIONS: Final = st.dictionaries(
    OPERATORS, st.dictionaries(KEYS, st.lists(VALUES, min_size=1, max_size=2), min_size=1, max_size=2), max_size=3
)
ACTIONS: Final = st.sampled_from([*DANGEROUS, *TENANT_ACTIONS, "kms:*", "kms:Re*", "*"])
STATEMENTS: Final = st.fixed_dictionaries(
    {
        "Sid": st.just("Added"),
        "Effect": st.sampled_from(["Allow", "Deny"]),
        "Principal": st.builds(lambda names: {"AWS": names}, st.lists(NAMES, min_size=1, max_size=2)),
        "Action": st.lists(
            st.sampled_from([*DANGEROUS, *TENANT_ACTIONS, "kms:*", "kms:Re*", "*"]), min_size=1, max_size=2
        ),
        "Resource": st.sampled_from(["*", KEY, KEY[:-1] + "c", "arn:aws:kms:*"]),
        "Condition": CONDITIONS,
    }
)
#: Requests that a good policy refuses: everything by others, and by the service whatever is not its one attested call.
CALLERS: Final = (OTHER, "arn:aws:iam::777788889999:role/admin", SERVICE)
CONTEXTS: Final[tuple[dict[str, str], ...]] = (
    {},
    ATTESTED,
    *({name: value for name, value in ATTESTED.items() if name not in missing} for missing in (
        (IMAGE_CONDITION, "kms:RecipientAttestation:PCR0"), ("kms:EncryptionContext:mrgc:use",),
        ("kms:EncryptionContext:mrgc:tenant",),
    )),
    ATTESTED | {IMAGE_CONDITION: ZERO, "kms:RecipientAttestation:PCR0": ZERO},
    ATTESTED | {"kms:EncryptionContext:mrgc:use": "payload"},
    ATTESTED | {"kms:EncryptionContext:mrgc:tenant": "other"},
    ATTESTED | {IMAGE_CONDITION: "0f" * 48, "kms:RecipientAttestation:PCR0": "0f" * 48},
)  # fmt: skip


def admitted(policy: str) -> list[AccessRequest]:
    """Return the requests that the evaluator allows and a good policy does not."""
    parsed = parse_policy(policy)
    requests = (
        AccessRequest(caller, action, KEY, conditions, is_administrator=True)
        for caller, action, conditions in itertools.product(CALLERS, DANGEROUS, CONTEXTS)
        if (caller, action, conditions) != (SERVICE, "kms:Decrypt", ATTESTED)
    )
    return [request for request in requests if is_allowed(parsed, request)]


@given(
    st.lists(STATEMENTS, max_size=3),
    st.sets(st.sampled_from(["TenantOwnsTheKey", OPENS, DENY]), max_size=2),
)
@example([], set())
@example([], {DENY})
def test_a_policy_without_findings_admits_nobody_else(more: list[dict[str, Any]], removed: set[str]) -> None:
    """Whatever is added to a generated policy or taken from it: no finding means that the rest is refused."""
    base = generated()
    kept = [each for each in base["Statement"] if each["Sid"] not in removed]
    policy = json.dumps(base | {"Statement": [*kept, *more]})
    found: Review = review(policy, [], TOLD)
    if not found.findings:
        assert admitted(policy) == []


def test_the_property_can_fail() -> None:
    """The evaluator does allow what the findings of two loose policies say."""
    assert admitted(text()) == []
    assert admitted(text(allow({"AWS": OTHER}, "kms:Decrypt")))
    assert admitted(edited(OPENS, Condition=None, Action="kms:*", Principal={"AWS": OTHER}))


NODES: Final = st.sampled_from(["Statement", "Effect", "Principal", "Action", "Condition", "AWS", "Allow", "x"])
TREES: Final = st.recursive(
    st.none() | st.booleans() | NODES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NODES, inner, max_size=4),
)


@given(st.text(max_size=300) | TREES.map(json.dumps))
def test_any_text_gives_a_review_or_the_one_error(policy: str) -> None:
    """No text makes the review raise anything but FormatError."""
    with suppress(FormatError):
        review(policy, [], BARE)
