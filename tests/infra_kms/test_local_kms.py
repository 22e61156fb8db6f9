"""Operations, errors and wire form of the one-machine KMS, asked through boto3 and by hand."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import botocore.exceptions
import pytest

from tests.infra_kms.conftest import ACME, JOB, OTHER, PRINCIPALS, REGION, SERVICE, Kms
from tests.infra_kms.test_attested_release import code_of

UNKNOWN_KEY: Final = "arn:aws:kms:eu-west-1:111122223333:key/00000000-0000-0000-0000-000000000000"


def connect(kms: Kms, name: str = "127.0.0.1") -> ssl.SSLSocket:
    """Connect by TLS, verifying the certificate for `name`."""
    context = ssl.create_default_context(cafile=kms.ready["ca"])
    raw = socket.create_connection((kms.ready["host"], kms.ready["port"]), timeout=10)
    return context.wrap_socket(raw, server_hostname=name)


def raw_http(kms: Kms) -> http.client.HTTPConnection:
    """Return an HTTP connection over TLS."""
    connection = http.client.HTTPConnection(kms.ready["host"], kms.ready["port"], timeout=10)
    connection.sock = connect(kms)
    return connection


def stats(kms: Kms) -> dict[str, int]:
    """Return the counts of calls."""
    connection = raw_http(kms)
    connection.request("GET", "/stats")
    counts: dict[str, int] = json.loads(connection.getresponse().read())
    connection.close()
    return counts


def test_a_key_is_described_as_aws_describes_one(kms: Kms) -> None:
    """Key ids are UUIDs, ARNs are the creator's account's, and every member of the model is accepted by botocore."""
    created = kms.client(ACME).create_key(Description="of acme")["KeyMetadata"]
    assert created["Arn"] == f"arn:aws:kms:{REGION}:111122223333:key/{created['KeyId']}"
    assert len(created["KeyId"]) == 36
    assert kms.client(ACME).describe_key(KeyId=created["KeyId"])["KeyMetadata"] == created
    assert (created["KeyState"], created["Description"]) == ("Enabled", "of acme")


def test_multi_region_keys_have_their_own_form_of_id(kms: Kms) -> None:
    """A multi-Region key's id begins with mrk-."""
    created = kms.client(ACME, region_name="us-east-1").create_key(MultiRegion=True)["KeyMetadata"]
    assert created["KeyId"].startswith("mrk-")
    assert created["Arn"].startswith("arn:aws:kms:us-east-1:111122223333:key/mrk-")
    assert created["MultiRegion"] is True


def test_replicas_share_id_and_material_and_nothing_else(kms: Kms) -> None:
    """What one region encrypts the other decrypts, by ARN or without; policies are each key's own."""
    home, away = kms.client(ACME), kms.client(ACME, region_name="us-east-1")
    primary = home.create_key(MultiRegion=True, Description="first")["KeyMetadata"]
    made = home.replicate_key(KeyId=primary["KeyId"], ReplicaRegion="us-east-1", Description="second")
    replica = made["ReplicaKeyMetadata"]
    assert replica["Arn"] == primary["Arn"].replace(REGION, "us-east-1")
    assert json.loads(made["ReplicaPolicy"]) == json.loads(
        away.get_key_policy(KeyId=replica["Arn"], PolicyName="default")["Policy"]
    )
    described = home.describe_key(KeyId=primary["Arn"])["KeyMetadata"], replica
    assert [each["MultiRegionConfiguration"]["MultiRegionKeyType"] for each in described] == ["PRIMARY", "REPLICA"]
    for each in described:
        configuration = each["MultiRegionConfiguration"]
        assert configuration["PrimaryKey"] == {"Arn": primary["Arn"], "Region": REGION}
        assert configuration["ReplicaKeys"] == [{"Arn": replica["Arn"], "Region": "us-east-1"}]
    blob = home.encrypt(KeyId=primary["Arn"], Plaintext=b"x", EncryptionContext=JOB)["CiphertextBlob"]
    for named in ({"KeyId": replica["Arn"]}, {}):
        opened = away.decrypt(CiphertextBlob=blob, EncryptionContext=JOB, **named)
        assert (opened["Plaintext"], opened["KeyId"]) == (b"x", replica["Arn"])
    back = away.encrypt(KeyId=replica["Arn"], Plaintext=b"y")["CiphertextBlob"]
    assert home.decrypt(CiphertextBlob=back)["Plaintext"] == b"y"
    # A replica is found in its own region only.
    assert code_of(home.decrypt, CiphertextBlob=blob, KeyId=replica["Arn"]) == "NotFoundException"


def test_only_a_primary_key_is_replicated_and_once_per_region(kms: Kms) -> None:
    """A key of one region, a replica, a region that is not served, and a second replica are refused."""
    home, away = kms.client(ACME), kms.client(ACME, region_name="us-east-1")
    single = home.create_key()["KeyMetadata"]["Arn"]
    primary = home.create_key(MultiRegion=True)["KeyMetadata"]["Arn"]
    assert code_of(home.replicate_key, KeyId=single, ReplicaRegion="us-east-1") == "UnsupportedOperationException"
    assert code_of(home.replicate_key, KeyId=primary, ReplicaRegion="mars-1") == "UnsupportedOperationException"
    assert code_of(kms.client(OTHER).replicate_key, KeyId=primary, ReplicaRegion="us-east-1") == "AccessDeniedException"
    replica = home.replicate_key(KeyId=primary, ReplicaRegion="us-east-1")["ReplicaKeyMetadata"]["Arn"]
    assert code_of(home.replicate_key, KeyId=primary, ReplicaRegion="us-east-1") == "AlreadyExistsException"
    assert code_of(away.replicate_key, KeyId=replica, ReplicaRegion=REGION) == "UnsupportedOperationException"


def test_encrypt_and_decrypt_are_inverse_under_one_context(kms: Kms) -> None:
    """A plaintext comes back under its key and context, and under no other."""
    client = kms.client(ACME)
    key_arn = client.create_key()["KeyMetadata"]["Arn"]
    sealed = client.encrypt(KeyId=key_arn, Plaintext=b"x" * 4096, EncryptionContext=JOB)
    blob = sealed["CiphertextBlob"]
    assert client.decrypt(CiphertextBlob=blob, EncryptionContext=JOB)["Plaintext"] == b"x" * 4096
    swapped = {"mrgc:tenant": "job", "mrgc:use": "acme"}
    for context in ({}, swapped, JOB | {"a": "b"}):
        code = code_of(client.decrypt, CiphertextBlob=blob, EncryptionContext=context)
        assert code == "InvalidCiphertextException"
    damaged = (
        blob[:-1] + bytes([blob[-1] ^ 1]),
        blob[:-1],
        blob[:40],
        b"\x01",
        b"\x02" + blob[1:],
        b"\x01\xff" + blob[2:],
    )
    for each in damaged:
        code = code_of(client.decrypt, CiphertextBlob=each, EncryptionContext=JOB)
        assert code == "InvalidCiphertextException"


def test_a_ciphertext_of_another_key_is_an_incorrect_key(kms: Kms) -> None:
    """KeyId is compared with the key that the ciphertext names."""
    client = kms.client(ACME)
    first, second = (client.create_key()["KeyMetadata"]["Arn"] for _ in range(2))
    blob = client.encrypt(KeyId=first, Plaintext=b"x")["CiphertextBlob"]
    assert code_of(client.decrypt, CiphertextBlob=blob, KeyId=second) == "IncorrectKeyException"


def test_unknown_keys_are_not_found(kms: Kms) -> None:
    """A key that does not exist, in this region, or under an alias, is not found."""
    client = kms.client(ACME)
    key_arn = client.create_key()["KeyMetadata"]["Arn"]
    elsewhere = kms.client(ACME, region_name="us-east-1")
    for caller, name in (
        (client, UNKNOWN_KEY),
        (client, "alias/acme"),
        (client, key_arn.replace("111122223333", "444455556666")),
        (elsewhere, key_arn),
        (kms.client(OTHER), key_arn.rpartition("/")[2]),
    ):
        assert code_of(caller.describe_key, KeyId=name) == "NotFoundException"


@pytest.mark.parametrize("length", [1, 32, 1024])
def test_data_keys_and_random_bytes_have_the_asked_length(kms: Kms, length: int) -> None:
    """NumberOfBytes and KeySpec decide the length."""
    client = kms.client(ACME)
    key_arn = client.create_key()["KeyMetadata"]["Arn"]
    assert len(client.generate_data_key(KeyId=key_arn, NumberOfBytes=length)["Plaintext"]) == length
    assert len(client.generate_data_key(KeyId=key_arn, KeySpec="AES_128")["Plaintext"]) == 16
    assert len(client.generate_random(NumberOfBytes=length)["Plaintext"]) == length


def test_what_is_not_served_is_refused_rather_than_ignored(kms: Kms) -> None:
    """Members and values beyond the served ones, and wrong combinations, are validation errors."""
    client = kms.client(ACME)
    key_arn = client.create_key()["KeyMetadata"]["Arn"]
    for call, arguments in (
        (client.create_key, {"Tags": [{"TagKey": "a", "TagValue": "b"}]}),
        (client.create_key, {"KeySpec": "RSA_2048"}),
        (client.encrypt, {"KeyId": key_arn, "Plaintext": b"x", "DryRun": True}),
        (client.encrypt, {"KeyId": key_arn, "Plaintext": b"x" * 4096, "EncryptionAlgorithm": "RSAES_OAEP_SHA_1"}),
        (client.generate_data_key, {"KeyId": key_arn}),
        (client.generate_data_key, {"KeyId": key_arn, "KeySpec": "AES_256", "NumberOfBytes": 32}),
        (client.generate_data_key, {"KeyId": key_arn, "KeySpec": "AES_512"}),
        (client.generate_data_key, {"KeyId": key_arn, "KeySpec": "AES_256", "GrantTokens": ["x"]}),
        (client.generate_random, {}),
    ):
        assert code_of(call, **arguments) == "ValidationException"


def test_operations_that_are_not_served_are_unknown(kms: Kms) -> None:
    """ReEncrypt and CreateGrant, by which access would outlive a policy, do not exist here."""
    client = kms.client(ACME)
    key_arn = client.create_key()["KeyMetadata"]["Arn"]
    grant = {"KeyId": key_arn, "GranteePrincipal": OTHER, "Operations": ["Decrypt"]}
    assert code_of(client.create_grant, **grant) == "UnknownOperationException"
    assert code_of(client.re_encrypt, CiphertextBlob=b"x", DestinationKeyId=key_arn) == "UnknownOperationException"


@pytest.mark.parametrize("policy", ["{", "{}", '{"Version": "2012-10-17", "Statement": []}'])
def test_a_policy_that_cannot_be_held_is_refused(kms: Kms, policy: str) -> None:
    """Neither a malformed policy nor one that locks its author out replaces a good one."""
    client = kms.client(ACME)
    key_arn = client.create_key()["KeyMetadata"]["Arn"]
    before = client.get_key_policy(KeyId=key_arn)["Policy"]
    assert code_of(client.put_key_policy, KeyId=key_arn, Policy=policy) == "MalformedPolicyDocumentException"
    assert code_of(client.create_key, Policy=policy) == "MalformedPolicyDocumentException"
    assert client.get_key_policy(KeyId=key_arn)["Policy"] == before


def test_a_key_made_without_a_policy_is_its_makers(kms: Kms) -> None:
    """Nobody else, not even in a good enclave, may use it."""
    key_arn = kms.client(ACME).create_key()["KeyMetadata"]["Arn"]
    kms.client(ACME).generate_data_key(KeyId=key_arn, KeySpec="AES_256")
    for stranger in (OTHER, SERVICE):
        call = kms.client(stranger).generate_data_key
        assert code_of(call, KeyId=key_arn, KeySpec="AES_256") == "AccessDeniedException"


def test_calls_and_refusals_are_counted(kms: Kms) -> None:
    """GET /stats tells how many calls of each operation there were, and how many were refused and why."""
    client = kms.client(ACME)
    before = stats(kms)
    client.generate_random(NumberOfBytes=1)
    code_of(client.generate_random)
    code_of(client.describe_key, KeyId=UNKNOWN_KEY)
    after = stats(kms)
    grown = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    assert grown == {
        "GenerateRandom": 2,
        "GenerateRandom/ValidationException": 1,
        "DescribeKey": 1,
        "DescribeKey/NotFoundException": 1,
    }


def test_threads_share_the_server(kms: Kms) -> None:
    """Concurrent callers on connections of their own all get their own answers."""
    key_arn = kms.client(ACME).create_key()["KeyMetadata"]["Arn"]

    def round_trip(index: int) -> bool:
        client = kms.client(ACME)
        blob = client.encrypt(KeyId=key_arn, Plaintext=b"%d" % index)["CiphertextBlob"]
        plaintext: bytes = client.decrypt(CiphertextBlob=blob)["Plaintext"]
        return plaintext == b"%d" % index

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(round_trip, range(32)))


# --- TLS and HTTP ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["127.0.0.1", "localhost", f"kms.{REGION}.amazonaws.com", "kms.us-east-1.amazonaws.com"]
)
def test_the_certificate_is_good_for_every_served_name(kms: Kms, name: str) -> None:
    """The enclave verifies KMS's own host name, tenants the loopback address."""
    with connect(kms, name) as connection:
        assert connection.version() in {"TLSv1.2", "TLSv1.3"}


def test_other_names_and_other_authorities_are_refused_by_clients(kms: Kms) -> None:
    """The certificate vouches for no other region, and not without its CA."""
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(kms, "kms.eu-central-1.amazonaws.com")
    with pytest.raises(botocore.exceptions.SSLError):
        kms.client(ACME, verify=True).generate_random(NumberOfBytes=1)


def test_connections_are_kept_alive_and_lengths_exact(kms: Kms) -> None:
    """Several requests travel on one connection, each answer with its Content-Length."""
    connection = raw_http(kms)
    for _ in range(3):
        connection.request("POST", "/", body=b"{}", headers={"X-Amz-Target": "TrentService.GenerateRandom"})
        response = connection.getresponse()
        body = response.read()
        assert response.getheader("Content-Length") == str(len(body))
        assert response.getheader("x-amzn-RequestId")
        assert (response.status, json.loads(body)["__type"]) == (400, "MissingAuthenticationTokenException")
    connection.close()


@pytest.mark.parametrize("length", [None, "-1", "1048577", "9" * 5000, "0x10", "1e3"])
def test_a_body_without_a_sane_length_is_refused_and_the_connection_closed(kms: Kms, length: str | None) -> None:
    """What follows such a head cannot be told apart from the next request."""
    line = b"" if length is None else b"Content-Length: %s\r\n" % length.encode()
    with connect(kms) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n" + line + b"\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"SerializationException" in answer


def test_a_client_that_breaks_off_disturbs_nobody(kms: Kms) -> None:
    """Half a request, half a handshake and plain HTTP end their own connection only."""
    with connect(kms) as half:
        half.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
    for opening in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b""):
        with socket.create_connection((kms.ready["host"], kms.ready["port"]), timeout=10) as plain:
            plain.sendall(opening)
    assert kms.client(ACME).generate_random(NumberOfBytes=8)["Plaintext"]
    assert kms.process.poll() is None


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"KeyId": "a", "KeyId": "b"}', b"[" * 50_000, b"\xff"])
def test_a_signed_body_that_is_no_object_is_a_serialization_error(kms: Kms, body: bytes) -> None:
    """JSON is read strictly, after the signature."""
    client = kms.client(ACME, region_name=REGION)  # of its own: the handler below stays with it

    def replace(params: dict[str, Any], **_: object) -> None:
        params["body"] = body

    client.meta.events.register("before-call.kms.DescribeKey", replace)
    assert code_of(client.describe_key, KeyId="x") == "SerializationException"


def test_other_paths_are_not_found(kms: Kms) -> None:
    """GET serves the counts only."""
    connection = raw_http(kms)
    connection.request("GET", "/")
    assert connection.getresponse().status == 404
    connection.close()


def test_secrets_are_in_no_representation() -> None:
    """The secrets of principals cannot reach a log through repr()."""
    assert "secret" not in repr(PRINCIPALS)
    assert "a-token" not in repr(PRINCIPALS)
