"""The policies that `mrgc policy` prints, in force in the one-machine KMS, and `mrgc policy check` on live keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from botocore.exceptions import ClientError

from infra.kms_config import KmsConfig, Principal
from infra.local_nsm import LocalNsm
from mrgc.policy import key_policy
from tests.cli.in_process import Done, mrgc
from tests.infra_kms.cms_oracle import open_cms
from tests.infra_kms.conftest import (
    ACCESS_KEYS,
    ACME,
    JOB,
    OTHER,
    PCRS,
    PRINCIPALS,
    SERVICE,
    Enclave,
    Kms,
    serving,
)

FURTHER: Final = {3: b"\xd3" * 48, 4: b"\xd4" * 48, 8: b"\xd8" * 48}
ALL_PCRS: Final = PCRS | FURTHER
PAYLOAD: Final = JOB | {"mrgc:use": "payload"}
STANDALONE: Final = JOB | {"mrgc:use": "standalone"}
DENIED: Final = "AccessDeniedException"


@pytest.fixture(scope="module")
def signed(pki: Path) -> Enclave:
    """An enclave of a signed image on a known parent."""
    return Enclave(LocalNsm(pki, ALL_PCRS))


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> str:
    """pcr-values.json of that image."""
    file = tmp_path_factory.mktemp("image") / "pcr-values.json"
    measured = {f"PCR{index}": ALL_PCRS[index].hex() for index in (0, 1, 2, 8)}
    file.write_text(json.dumps({"Measurements": {"HashAlgorithm": "Sha384 { ... }", **measured}}))
    return str(file)


def printed(values: str, *more: str, keeper: tuple[str, str] = ("--tenant-principal", ACME)) -> str:
    """Return what the command prints, byte for byte."""
    done = mrgc("policy", "--pcrs", values, "--tenant", "acme", *keeper, "--role", SERVICE, *more)
    assert done.code == 0, done
    return done.out


def created(kms: Kms, policy: str) -> str:
    """Create a key of acme's with this policy text."""
    arn: str = kms.client(ACME).create_key(Policy=policy)["KeyMetadata"]["Arn"]
    return arn


def outcome(kms: Kms, operation: str, recipient: dict[str, Any] | None, **arguments: Any) -> str:
    """Return how the service's call ends: with a CMS, or with an error's code."""
    if recipient is not None:
        arguments["Recipient"] = recipient
    try:
        answer = getattr(kms.client(SERVICE), operation)(**arguments)
    except ClientError as error:
        code: str = error.response["Error"]["Code"]
        return code
    assert "Plaintext" not in answer
    return "CMS" if "CiphertextForRecipient" in answer else "answered"


def decrypts(kms: Kms, key_arn: str, recipient: dict[str, Any] | None, context: dict[str, str] = JOB) -> str:
    """Let the service decrypt what acme wrapped under this context."""
    wrapped = kms.client(ACME).encrypt(KeyId=key_arn, Plaintext=b"secret", EncryptionContext=context)
    return outcome(
        kms, "decrypt", recipient, KeyId=key_arn, CiphertextBlob=wrapped["CiphertextBlob"], EncryptionContext=context
    )


def generates(kms: Kms, key_arn: str, recipient: dict[str, Any] | None, context: dict[str, str]) -> str:
    """Let the service generate a data key under this context."""
    return outcome(kms, "generate_data_key", recipient, KeyId=key_arn, KeySpec="AES_256", EncryptionContext=context)


# --- in force -----------------------------------------------------------------------------------------------------


def test_the_printed_policy_admits_sealed_jobs_of_its_image_and_nothing_else(
    kms: Kms, pki: Path, signed: Enclave, values: str
) -> None:
    """Right PCR0 and context: the data key; wrong PCR0, wrong context, no document: access denied."""
    key_arn = created(kms, printed(values))
    right = signed.recipient()
    assert decrypts(kms, key_arn, right) == "CMS"
    assert decrypts(kms, key_arn, None) == DENIED
    for index in range(3):  # PCR1 and PCR2 are not what the policy pins
        other = Enclave(LocalNsm(pki, ALL_PCRS | {index: b"\x0f" * 48}), signed.key)
        assert decrypts(kms, key_arn, other.recipient()) == (DENIED if index == 0 else "CMS")
    for context in (PAYLOAD, STANDALONE, JOB | {"mrgc:tenant": "other"}, {"mrgc:tenant": "acme"}, {}):
        assert decrypts(kms, key_arn, right, context) == DENIED
    for context in (JOB, PAYLOAD, STANDALONE):
        assert generates(kms, key_arn, right, context) == DENIED
        assert generates(kms, key_arn, None, context) == DENIED


def test_a_debug_enclave_never_meets_a_printed_policy(kms: Kms, pki: Path, signed: Enclave, values: str) -> None:
    """Statement 6: zero PCRs are refused, though PCR3, PCR4 and PCR8 are right."""
    key_arn = created(kms, printed(values, "--pcr8", "--pcr3", FURTHER[3].hex(), "--pcr4", FURTHER[4].hex()))
    debug = Enclave(LocalNsm(pki, ALL_PCRS | dict.fromkeys(range(3), bytes(48))), signed.key)
    assert decrypts(kms, key_arn, debug.recipient()) == DENIED
    assert decrypts(kms, key_arn, signed.recipient()) == "CMS"


@pytest.mark.parametrize(
    "option", [("--pcr8",), ("--pcr3", FURTHER[3].hex()), ("--pcr4", FURTHER[4].hex())], ids=lambda words: words[0]
)
def test_a_further_register_is_judged_beside_the_image(
    kms: Kms, pki: Path, signed: Enclave, values: str, option: tuple[str, ...]
) -> None:
    """The same image with another signer, role or parent is admitted only where the policy does not ask."""
    index = int(option[0].removeprefix("--pcr"))
    other = Enclave(LocalNsm(pki, ALL_PCRS | {index: b"\x0f" * 48}), signed.key).recipient()
    assert decrypts(kms, created(kms, printed(values)), other) == "CMS"
    asking = created(kms, printed(values, *option))
    assert decrypts(kms, asking, other) == DENIED
    assert decrypts(kms, asking, signed.recipient()) == "CMS"


def test_the_json_protocol_adds_its_two_accesses(kms: Kms, pki: Path, signed: Enclave, values: str) -> None:
    """Attested Decrypt of payloads and attested GenerateDataKey of standalone answers, each for its own use only."""
    key_arn = created(kms, printed(values, "--json-protocol"))
    right = signed.recipient()
    other = Enclave(LocalNsm(pki, ALL_PCRS | {0: b"\x0f" * 48}), signed.key).recipient()
    assert decrypts(kms, key_arn, right, JOB) == "CMS"
    assert decrypts(kms, key_arn, right, PAYLOAD) == "CMS"
    assert decrypts(kms, key_arn, right, STANDALONE) == DENIED
    assert generates(kms, key_arn, right, STANDALONE) == "CMS"
    for context in (JOB, PAYLOAD, STANDALONE | {"mrgc:tenant": "other"}, {}):
        assert generates(kms, key_arn, right, context) == DENIED
    for recipient in (None, other):
        assert decrypts(kms, key_arn, recipient, PAYLOAD) == DENIED
        assert generates(kms, key_arn, recipient, STANDALONE) == DENIED


@pytest.mark.parametrize("more", [[], ["--json-protocol"]])
def test_a_wrapped_data_key_is_no_payload(kms: Kms, signed: Enclave, values: str, more: list[str]) -> None:
    """Decrypted under mrgc:use = payload, a data key that was wrapped for jobs is refused by KMS itself."""
    key_arn = created(kms, printed(values, *more))
    wrapped = kms.client(ACME).generate_data_key(KeyId=key_arn, KeySpec="AES_256", EncryptionContext=JOB)
    arguments = {"KeyId": key_arn, "CiphertextBlob": wrapped["CiphertextBlob"]}
    refusal = outcome(kms, "decrypt", signed.recipient(), EncryptionContext=PAYLOAD, **arguments)
    assert refusal == ("InvalidCiphertextException" if more else DENIED)
    answer = kms.client(SERVICE).decrypt(EncryptionContext=JOB, Recipient=signed.recipient(), **arguments)
    assert open_cms(answer["CiphertextForRecipient"], signed.key) == wrapped["Plaintext"]


def test_the_deny_holds_against_a_later_allow(kms: Kms, pki: Path, signed: Enclave, values: str) -> None:
    """Somebody allows everyone everything: the service's role still gets nothing without its image and its signer."""
    document = json.loads(printed(values, "--pcr8"))
    document["Statement"].append({"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"})
    key_arn = created(kms, json.dumps(document))
    assert decrypts(kms, key_arn, signed.recipient()) == "CMS"
    for pcrs in ({0: b"\x0f" * 48}, {8: b"\x0f" * 48}, {8: bytes(48)}):
        other = Enclave(LocalNsm(pki, ALL_PCRS | pcrs), signed.key)
        assert decrypts(kms, key_arn, other.recipient()) == DENIED
    assert decrypts(kms, key_arn, None) == DENIED


def test_the_tenant_keeps_its_key(kms: Kms, values: str) -> None:
    """Under every printed policy the tenant wraps, unwraps, reads and replaces, and others do not."""
    for more in ([], ["--json-protocol"], ["--pcr8"]):
        policy = printed(values, *more)
        key_arn = created(kms, policy)
        client = kms.client(ACME)
        wrapped = client.generate_data_key(KeyId=key_arn, KeySpec="AES_256", EncryptionContext=JOB)
        opened = client.decrypt(CiphertextBlob=wrapped["CiphertextBlob"], EncryptionContext=JOB)
        assert opened["Plaintext"] == wrapped["Plaintext"]
        client.put_key_policy(KeyId=key_arn, PolicyName="default", Policy=policy)
        assert client.get_key_policy(KeyId=key_arn)["Policy"] == policy
        assert client.list_grants(KeyId=key_arn)["Grants"] == []
        for stranger in (OTHER, SERVICE):
            with pytest.raises(ClientError, match=DENIED):
                kms.client(stranger).list_grants(KeyId=key_arn)


@pytest.fixture(scope="module")
def administered(tmp_path_factory: pytest.TempPathFactory, pki: Path) -> Iterator[Kms]:
    """A server to which acme is an administrator of its account."""
    directory = tmp_path_factory.mktemp("administered")
    principals = PRINCIPALS | {"AKIAACME": Principal(ACME, "acme-secret", is_administrator=True)}
    with serving(directory, KmsConfig(directory / "state", pki / "root.pem", principals)) as server:
        yield server


def test_a_policy_for_an_account_works_for_its_administrators(
    administered: Kms, kms: Kms, signed: Enclave, values: str
) -> None:
    """--account leaves the tenant's side to IAM: an administrator has it, and without one KMS refuses the policy."""
    policy = printed(values, keeper=("--account", ACME.split(":")[4]))
    key_arn = created(administered, policy)
    assert decrypts(administered, key_arn, signed.recipient()) == "CMS"
    assert decrypts(administered, key_arn, None) == DENIED
    with pytest.raises(ClientError, match="MalformedPolicyDocument"):
        created(kms, policy)


# --- mrgc policy check --------------------------------------------------------------------------------------------


@pytest.fixture
def as_tenant(kms: Kms, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of acme."""
    monkeypatch.setenv("MRGC_TENANT", "acme")
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", kms.ready["endpoint"])
    monkeypatch.setenv("AWS_CA_BUNDLE", kms.ready["ca"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEYS[ACME])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PRINCIPALS[ACCESS_KEYS[ACME]].secret)


def check(key_arn: str, *more: str) -> Done:
    """Run the review of a live key."""
    return mrgc("policy", "check", "--key", key_arn, *more)


@pytest.mark.usefixtures("as_tenant")
def test_nothing_loosens_what_was_printed(kms: Kms, values: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read back from KMS, a printed policy passes: told everything, or nothing but the environment."""
    key_arn = created(kms, printed(values, "--pcr8"))
    done = check(key_arn, "--pcrs", values, "--tenant-principal", ACME, "--role", SERVICE, "--json")
    assert (done.code, done.err) == (0, "")
    assert done.fields == {
        "key_arn": key_arn,
        "tenant": "acme",
        "tenant_principal": ACME,
        "service_role": SERVICE,
        "images": [PCRS[0].hex()],
        "loosened": False,
        "findings": [],
        "notes": [],
    }
    monkeypatch.setenv("MRGC_KEY_ARN", key_arn)
    done = mrgc("policy", "check")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        f"key       {key_arn}",
        f"tenant    acme, {ACME}",
        f"service   {SERVICE}",
        f"image     {PCRS[0].hex()}",
        "note      the image was not compared: give its measurements with --pcrs",
        "nothing loosens this policy",
    ]


@pytest.mark.usefixtures("as_tenant")
def test_what_was_loosened_later_is_listed(kms: Kms, values: str) -> None:
    """PutKeyPolicy after the review: the next review ends with 3 and names the statement."""
    key_arn = created(kms, printed(values))
    document = json.loads(printed(values))
    document["Statement"] += [
        {"Sid": "Help desk", "Effect": "Allow", "Principal": {"AWS": OTHER}, "Action": "kms:Decrypt", "Resource": "*"},
    ]
    kms.client(ACME).put_key_policy(KeyId=key_arn, PolicyName="default", Policy=json.dumps(document))
    done = check(key_arn)
    assert done.code == 3
    assert f"loosened  other_principal: Help desk: {OTHER} may Decrypt without attestation" in done.out.splitlines()
    assert "nothing loosens" not in done.out
    done = check(key_arn, "--json")
    assert (done.code, done.fields["loosened"]) == (3, True)
    assert [each["code"] for each in done.fields["findings"]] == ["other_principal"]
    assert done.fields["findings"][0]["sid"] == "Help desk"


@pytest.mark.usefixtures("as_tenant")
def test_another_image_and_the_json_protocol_are_listed_unless_wanted(kms: Kms, values: str) -> None:
    """The review compares with what the tenant means, and says what of it is not so."""
    key_arn = created(kms, printed(values, "--json-protocol"))
    assert [each["code"] for each in check(key_arn, "--json").fields["findings"]] == ["json_protocol"] * 2
    assert check(key_arn, "--json-protocol").code == 0
    older = kms.tenant_key(pcr0=b"\x0f" * 48)
    assert check(older).code == 0
    done = check(older, "--pcrs", values, "--json")
    assert (done.code, [each["code"] for each in done.fields["findings"]]) == (3, ["other_image"])


@pytest.mark.usefixtures("as_tenant")
def test_a_key_without_a_policy_of_its_own_is_loose(kms: Kms) -> None:
    """What KMS gives to a key made without a policy is found to be no protection."""
    key_arn = kms.client(ACME).create_key()["KeyMetadata"]["Arn"]
    done = check(key_arn, "--role", SERVICE, "--json")
    assert (done.code, [each["code"] for each in done.fields["findings"]]) == (3, ["delegation", "no_deny"])
    assert "no statement admits an enclave" in done.fields["notes"]


@pytest.mark.usefixtures("as_tenant")
def test_names_in_a_policy_do_not_act_on_a_terminal(kms: Kms) -> None:
    """A Sid is whatever its author wrote."""
    document = key_policy(pcr0=PCRS[0], tenant="acme", tenant_principal=ACME, service_role=SERVICE)
    document["Statement"].append(
        {"Sid": "\x1b[2Jx", "Effect": "Allow", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*"}
    )
    done = check(created(kms, json.dumps(document)))
    assert done.code == 3
    assert "\x1b" not in done.out
    assert "wildcard_principal: \\u001b[2Jx: any principal" in done.out


@pytest.mark.usefixtures("as_tenant")
def test_a_review_that_kms_does_not_permit_is_no_verdict(
    kms: Kms, values: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, absent or unreachable: an error with its own exit code, and nothing on standard output."""
    key_arn = created(kms, printed(values))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEYS[OTHER])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PRINCIPALS[ACCESS_KEYS[OTHER]].secret)
    refused = check(key_arn)
    assert (refused.code, refused.out) == (12, "")
    assert refused.err == "mrgc: key_access: kms refused the key: AccessDeniedException\n"
    assert check(key_arn[:-12] + "0" * 12).code == 12
    monkeypatch.setenv("AWS_CA_BUNDLE", "/absent.pem")
    assert check(key_arn).code in {10, 11}
