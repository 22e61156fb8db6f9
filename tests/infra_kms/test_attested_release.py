"""Who gets a data key: the whole decision of the one-machine KMS, asked through boto3."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from botocore.exceptions import ClientError

from infra.local_nsm import LocalNsm, create_pki
from mrgc.policy import key_policy
from tests.infra_kms.cms_oracle import open_cms
from tests.infra_kms.conftest import ACME, JOB, OTHER, PCR0, PCRS, SERVICE, Enclave, Kms

OTHER_CONTEXTS: Final[list[dict[str, str]]] = [
    {"mrgc:tenant": "other", "mrgc:use": "job"},
    {"mrgc:tenant": "acme", "mrgc:use": "payload"},
    {"mrgc:use": "job"},
    {},
]


def code_of(call: Callable[..., Any], **arguments: Any) -> str:
    """Return the error code with which a call is refused."""
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    code: str = caught.value.response["Error"]["Code"]
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    return code


@pytest.fixture(scope="module")
def key_arn(kms: Kms) -> str:
    """Return a key of acme's with the generated policy."""
    return kms.tenant_key()


@pytest.fixture(scope="module")
def wrapped(kms: Kms, key_arn: str) -> dict[str, Any]:
    """Return what acme's own GenerateDataKey answered, for a job."""
    answer: dict[str, Any] = kms.client(ACME).generate_data_key(KeyId=key_arn, KeySpec="AES_256", EncryptionContext=JOB)
    return answer


def decrypt(key_arn: str, wrapped: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the arguments of the enclave's Decrypt."""
    named = {"KeyId": key_arn, "CiphertextBlob": wrapped["CiphertextBlob"], "EncryptionContext": JOB}
    return {**named, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT", **changes}


def test_the_named_image_gets_the_data_key_encrypted_for_it(
    kms: Kms, enclave: Enclave, key_arn: str, wrapped: dict[str, Any]
) -> None:
    """The attested Decrypt answers a CMS that only the enclave's key opens, and no Plaintext beside it."""
    answer = kms.client(SERVICE).decrypt(**decrypt(key_arn, wrapped, Recipient=enclave.recipient()))
    assert open_cms(answer["CiphertextForRecipient"], enclave.key) == wrapped["Plaintext"]
    assert "Plaintext" not in answer
    assert answer["KeyId"] == key_arn
    assert answer["EncryptionAlgorithm"] == "SYMMETRIC_DEFAULT"


def test_the_tenants_own_principal_needs_no_enclave(kms: Kms, key_arn: str, wrapped: dict[str, Any]) -> None:
    """The Deny of the generated policy does not keep a tenant from its own results."""
    client = kms.client(ACME)
    assert client.decrypt(**decrypt(key_arn, wrapped))["Plaintext"] == wrapped["Plaintext"]
    assert client.decrypt(CiphertextBlob=wrapped["CiphertextBlob"], EncryptionContext=JOB)["KeyId"] == key_arn
    assert len(wrapped["Plaintext"]) == 32


def test_without_a_document_the_service_gets_nothing(kms: Kms, key_arn: str, wrapped: dict[str, Any]) -> None:
    """The service's role alone is denied every operation."""
    client = kms.client(SERVICE)
    for call, arguments in (
        (client.decrypt, decrypt(key_arn, wrapped)),
        (client.generate_data_key, {"KeyId": key_arn, "KeySpec": "AES_256", "EncryptionContext": JOB}),
        (client.encrypt, {"KeyId": key_arn, "Plaintext": b"x", "EncryptionContext": JOB}),
        (client.describe_key, {"KeyId": key_arn}),
        (client.get_key_policy, {"KeyId": key_arn}),
        (client.put_key_policy, {"KeyId": key_arn, "Policy": "{}"}),
    ):
        assert code_of(call, **arguments) == "AccessDeniedException"


def test_an_attested_service_may_decrypt_and_nothing_else(kms: Kms, enclave: Enclave, key_arn: str) -> None:
    """GenerateDataKey with a good document is not in the policy."""
    arguments = {"KeyId": key_arn, "KeySpec": "AES_256", "EncryptionContext": JOB}
    call = kms.client(SERVICE).generate_data_key
    assert code_of(call, **arguments, Recipient=enclave.recipient()) == "AccessDeniedException"


@pytest.mark.parametrize("principal", [OTHER, ACME])
def test_attestation_does_not_stand_in_for_the_principal(
    kms: Kms, enclave: Enclave, wrapped: dict[str, Any], key_arn: str, principal: str
) -> None:
    """A stranger with the right enclave is denied; the tenant with it is answered, but only through the CMS."""
    arguments = decrypt(key_arn, wrapped, Recipient=enclave.recipient())
    call = kms.client(principal).decrypt
    if principal == OTHER:
        assert code_of(call, **arguments) == "AccessDeniedException"
    else:
        assert "Plaintext" not in call(**arguments)


@pytest.mark.parametrize(
    "context",
    [
        {"mrgc:tenant": "other", "mrgc:use": "job"},
        {"mrgc:tenant": "acme", "mrgc:use": "payload"},
        {"mrgc:use": "job"},
        {},
    ],
)
def test_another_context_is_denied_to_the_enclave(
    kms: Kms, enclave: Enclave, key_arn: str, context: dict[str, str]
) -> None:
    """A data key made for another tenant, another use, or none, does not come out, though its owner made it."""
    wrapped = kms.client(ACME).generate_data_key(KeyId=key_arn, KeySpec="AES_256", EncryptionContext=context)
    arguments = decrypt(key_arn, wrapped, EncryptionContext=context, Recipient=enclave.recipient())
    assert code_of(kms.client(SERVICE).decrypt, **arguments) == "AccessDeniedException"


def test_an_additional_context_key_is_part_of_the_ciphertext(kms: Kms, enclave: Enclave, key_arn: str) -> None:
    """The policy asks for two keys; a third is allowed, but must be the one that was wrapped."""
    context = JOB | {"department": "x"}
    wrapped = kms.client(ACME).generate_data_key(KeyId=key_arn, KeySpec="AES_256", EncryptionContext=context)
    call = kms.client(SERVICE).decrypt
    good = decrypt(key_arn, wrapped, EncryptionContext=context, Recipient=enclave.recipient())
    assert open_cms(call(**good)["CiphertextForRecipient"], enclave.key) == wrapped["Plaintext"]
    assert code_of(call, **good | {"EncryptionContext": JOB}) == "InvalidCiphertextException"


@pytest.fixture(scope="module")
def faulty(pki: Path, tmp_path_factory: pytest.TempPathFactory, enclave: Enclave) -> dict[str, bytes]:
    """Return documents of which each has one fault, by which no policy can accept it."""
    foreign = tmp_path_factory.mktemp("foreign")
    create_pki(foreign)
    good = enclave.document()
    return {
        "debug": Enclave(LocalNsm(pki, dict.fromkeys(range(3), bytes(48))), enclave.key).document(),
        "foreign root": Enclave(LocalNsm(foreign, PCRS), enclave.key).document(),
        "stale": Enclave(LocalNsm(pki, PCRS, clock=lambda: time.time() - 400), enclave.key).document(),
        "ahead": Enclave(LocalNsm(pki, PCRS, clock=lambda: time.time() + 400), enclave.key).document(),
        "bad signature": good[:-1] + bytes([good[-1] ^ 1]),
        "changed payload": good.replace(PCR0, b"\x5a" * 48),
        "no public key": enclave.document(public_key=None),
        "public key is no key": enclave.document(public_key=b"x" * 294),
        "garbage": b"garbage",
        "trailing byte": good + b"\0",
    }


def test_every_faulty_document_is_denied(
    kms: Kms, enclave: Enclave, faulty: dict[str, bytes], key_arn: str, wrapped: dict[str, Any]
) -> None:
    """Statement 6: debug, foreign root, stale, early, damaged, without a key: one answer, access denied."""
    client = kms.client(SERVICE)
    for fault, document in faulty.items():
        arguments = decrypt(key_arn, wrapped, Recipient=enclave.recipient(document))
        assert code_of(client.decrypt, **arguments) == "AccessDeniedException", fault
    client.decrypt(**decrypt(key_arn, wrapped, Recipient=enclave.recipient()))


def test_a_genuine_document_of_another_image_is_denied(
    kms: Kms, pki: Path, enclave: Enclave, key_arn: str, wrapped: dict[str, Any]
) -> None:
    """Nothing is wrong with the document but what runs; PCR1 and PCR2 are even the wanted ones."""
    other = Enclave(LocalNsm(pki, PCRS | {0: b"\x0f" * 48}), enclave.key)
    arguments = decrypt(key_arn, wrapped, Recipient=other.recipient())
    assert code_of(kms.client(SERVICE).decrypt, **arguments) == "AccessDeniedException"


def test_a_faulty_document_is_refused_even_where_the_policy_asks_for_none(
    kms: Kms, enclave: Enclave, faulty: dict[str, bytes], key_arn: str, wrapped: dict[str, Any]
) -> None:
    """A Recipient that cannot be verified never falls back to an answer in the clear."""
    client = kms.client(ACME)
    calls: tuple[Callable[[Any], dict[str, Any]], ...] = (
        lambda recipient: client.decrypt(**decrypt(key_arn, wrapped, Recipient=recipient)),
        lambda recipient: client.generate_data_key(
            KeyId=key_arn, KeySpec="AES_256", EncryptionContext=JOB, Recipient=recipient
        ),
        lambda recipient: client.generate_random(NumberOfBytes=32, Recipient=recipient),
    )
    for call in calls:
        for fault, document in faulty.items():
            assert code_of(call, recipient=enclave.recipient(document)) == "AccessDeniedException", fault
        answer = call(enclave.recipient())
        assert "Plaintext" not in answer
        assert len(open_cms(answer["CiphertextForRecipient"], enclave.key)) == 32


def test_a_key_whose_policy_names_another_image_stays_closed(kms: Kms, enclave: Enclave) -> None:
    """The same role, tenant and context, but the policy pins another PCR0."""
    key_arn = kms.tenant_key(pcr0=b"\x5a" * 48)
    wrapped = kms.client(ACME).generate_data_key(KeyId=key_arn, KeySpec="AES_256", EncryptionContext=JOB)
    arguments = decrypt(key_arn, wrapped, Recipient=enclave.recipient())
    assert code_of(kms.client(SERVICE).decrypt, **arguments) == "AccessDeniedException"


def test_a_new_policy_is_in_force_with_the_next_call(kms: Kms, enclave: Enclave) -> None:
    """Revocation and image upgrade are PutKeyPolicy by the tenant."""
    key_arn = kms.tenant_key()
    wrapped = kms.client(ACME).generate_data_key(KeyId=key_arn, KeySpec="AES_256", EncryptionContext=JOB)
    arguments = decrypt(key_arn, wrapped)
    named: dict[str, Any] = {
        "tenant": "acme", "tenant_principal": ACME, "service_role": SERVICE, "key_arn": key_arn,
    }  # fmt: skip
    service = kms.client(SERVICE)
    for pcr0, accepted in ((PCR0, True), (b"\x5a" * 48, False), (PCR0, True)):
        policy = json.dumps(key_policy(pcr0=pcr0, **named))
        kms.client(ACME).put_key_policy(KeyId=key_arn, PolicyName="default", Policy=policy)
        assert kms.client(ACME).get_key_policy(KeyId=key_arn)["Policy"] == policy
        if accepted:
            assert "CiphertextForRecipient" in service.decrypt(**arguments, Recipient=enclave.recipient())
        else:
            assert code_of(service.decrypt, **arguments, Recipient=enclave.recipient()) == "AccessDeniedException"


def test_a_policy_may_ask_for_further_registers(kms: Kms, pki: Path, enclave: Enclave) -> None:
    """kms:RecipientAttestation:PCR<n> is judged beside the image."""
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": SERVICE},
        "Action": "kms:Decrypt",
        "Resource": "*",
        "Condition": {"StringEquals": {"kms:RecipientAttestation:PCR8": "d8" * 48}},
    }
    owner = {"Effect": "Allow", "Principal": {"AWS": ACME}, "Action": "kms:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [owner, statement]})
    key_arn = kms.client(ACME).create_key(Policy=policy)["KeyMetadata"]["Arn"]
    wrapped = kms.client(ACME).generate_data_key(KeyId=key_arn, KeySpec="AES_256", EncryptionContext=JOB)
    signed = Enclave(LocalNsm(pki, PCRS | {8: b"\xd8" * 48}), enclave.key)
    call = kms.client(SERVICE).decrypt
    assert code_of(call, **decrypt(key_arn, wrapped, Recipient=enclave.recipient())) == "AccessDeniedException"
    assert "CiphertextForRecipient" in call(**decrypt(key_arn, wrapped, Recipient=signed.recipient()))
