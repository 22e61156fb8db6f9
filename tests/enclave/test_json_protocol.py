from __future__ import annotations

import base64
import json
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enclave.batches import Batches
from enclave.connection import MAX_JSON_FRAME_BYTES, MAX_STRANGER_FRAME_BYTES, Limits
from infra.local_nsm import LocalNsm
from mrgc.errors import AuthenticationError
from mrgc.wire import frames
from mrgc.wire.headers import JSON_PROTOCOL_MODEL
from mrgc.wire.sealed import open_result, open_standalone, parse_job, parse_result, parse_standalone
from tests.enclave.json_caller import JsonCaller, error, plaintext_of, sealed_of, send_json
from tests.enclave.stack import PCRS, TOKEN, DataKey, Kms, RunningEnclave

PAYLOAD = {"mrgc:tenant": "acme", "mrgc:use": "payload"}
STANDALONE = {"mrgc:tenant": "acme", "mrgc:use": "standalone"}


@pytest.fixture
def caller(enclave: RunningEnclave) -> Iterator[JsonCaller]:
    """Connect without a token to an enclave whose first hello has opened the JSON protocol to all."""
    with enclave.caller() as agent, JsonCaller(enclave.path) as stranger:
        assert agent.hello(json_protocol=True) is None
        assert agent.credentials() is None
        yield stranger


@pytest.fixture(scope="session")
def key_arn(kms: Kms) -> str:
    """Create a key of acme's whose policy admits the bare path."""
    return kms.create_key(json_protocol=True)


def encrypted(kms: Kms, key_arn: str, plaintext: bytes, context: dict[str, str]) -> bytes:
    """Encrypt as a tenant does with KMS alone."""
    made = kms.client("acme").encrypt(KeyId=key_arn, Plaintext=plaintext, EncryptionContext=context)
    blob: bytes = made["CiphertextBlob"]
    return blob


# --- sealed jobs -----------------------------------------------------------------------------------------------------


def test_a_sealed_job_is_opened_and_its_result_sealed_for_the_tenant(caller: JsonCaller, kms: Kms) -> None:
    """The job's payload comes out; the answer goes back as an ordinary result, under the job's own data key."""
    key = kms.data_key()
    job = key.job(b'{"inputs": ["x"]}')
    answer = caller.decrypt(job, key.key_arn)
    assert (plaintext_of(answer), answer["success"], answer["request_id"]) == (b'{"inputs": ["x"]}', True, "r")
    result = parse_result(sealed_of(caller.encrypt(b'{"embeddings": []}', key.key_arn)))
    assert open_result(result, data_key=key.plaintext) == b'{"embeddings": []}'
    header, asked = result.header, parse_job(job)
    assert (header.status, header.type, header.model) == ("ok", "application/json", JSON_PROTOCOL_MODEL)
    assert (header.tier, header.request, header.edk) == (0, asked.request, asked.header.edk)
    assert abs(header.created - time.time()) < 5


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b' {"a": [1.5e3, null]}\n', "application/json"),
        (b'"text"', "application/json"),
        (b"not json", "application/octet-stream"),
        (b"\x00\xff", "application/octet-stream"),
        (b'{"a": 1, "a": 2}', "application/octet-stream"),
        (b"[NaN]", "application/octet-stream"),
        (b"[" * 9 + b"]" * 9, "application/octet-stream"),
    ],
)
def test_the_type_of_a_result_says_whether_its_bytes_are_json(
    caller: JsonCaller, kms: Kms, body: bytes, expected: str
) -> None:
    """Strict JSON is called so, and everything else is an octet stream."""
    key = kms.data_key()
    plaintext_of(caller.decrypt(key.job(), key.key_arn))
    result = parse_result(sealed_of(caller.encrypt(body, key.key_arn)))
    assert result.header.type == expected
    assert open_result(result, data_key=key.plaintext) == body


def test_a_sealed_job_meets_every_check_of_a_batch(caller: JsonCaller, kms: Kms) -> None:
    """Statement 5: floor, form, time, receipt, tag, commitment, policy: the codes of open_batch, none pending."""
    key, now = kms.data_key(), int(time.time())
    good = key.job()
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    wrong_commit = good.replace(parse_job(good).header.commit, bytes(32))
    stranger = kms.data_key(key_arn=kms.create_key(pcr0=b"\x99" * 48))
    cases = [
        (good[:-1], key, "bad_format"),
        (good + b"\x00", key, "bad_format"),
        (b"mrgc", key, "bad_format"),
        (key.job(created=now - 9, expires=now - 1), key, "expired"),
        (key.job(floor=1), key, "trust_floor"),
        (key.job(receipt=1), key, "unsupported"),
        (flipped, key, "auth"),
        (wrong_commit, key, "auth"),
        (stranger.job(), stranger, "key_access"),
    ]
    for payload, of, code in cases:
        assert caller.decrypt(payload, of.key_arn) == error(code)
        assert caller.encrypt(b"x", of.key_arn) == error("unknown_request")
    assert plaintext_of(caller.decrypt(good, key.key_arn))


def test_a_job_of_another_tenant_or_key_than_its_request_costs_no_kms_call(caller: JsonCaller, kms: Kms) -> None:
    """What the request says and what the job says must be equal, before anything is decrypted."""
    key, before = kms.data_key(), kms.decrypts()
    other = kms.create_key()
    assert caller.decrypt(key.job(), other) == error("bad_format")
    assert caller.decrypt(key.job(), key.key_arn, tenant="globex") == error("bad_format")
    assert kms.decrypts() == before


# --- bare ciphertexts ------------------------------------------------------------------------------------------------


def test_a_bare_ciphertext_is_decrypted_and_answered_by_a_standalone_object(
    caller: JsonCaller, kms: Kms, key_arn: str
) -> None:
    """What a tenant encrypted with KMS alone comes out; the answer opens under a data key that KMS made for it."""
    payload = encrypted(kms, key_arn, b"a question", PAYLOAD)
    assert plaintext_of(caller.decrypt(payload, key_arn, "req-abc-123")) == b"a question"
    sealed = parse_standalone(sealed_of(caller.encrypt(b"an answer", key_arn, "req-abc-123")))
    header = sealed.header
    assert (header.tenant, header.key_arn, header.request_id) == ("acme", key_arn, "req-abc-123")
    assert header.context == STANDALONE
    unwrapped = kms.client("acme").decrypt(KeyId=key_arn, CiphertextBlob=header.edk, EncryptionContext=STANDALONE)
    assert open_standalone(sealed, data_key=unwrapped["Plaintext"]) == b"an answer"


@pytest.mark.parametrize("size", [1, 31, 32, 33, 4_096])
def test_a_bare_plaintext_has_any_length_that_kms_takes(caller: JsonCaller, kms: Kms, key_arn: str, size: int) -> None:
    """There is no rule of 32 bytes for what is no data key."""
    payload = encrypted(kms, key_arn, b"x" * size, PAYLOAD)
    assert plaintext_of(caller.decrypt(payload, key_arn)) == b"x" * size


@pytest.mark.parametrize("use", ["job", "standalone"])
def test_a_wrapped_data_key_as_a_bare_payload_is_refused_by_kms_itself(
    caller: JsonCaller, kms: Kms, key_arn: str, use: str
) -> None:
    """Statement 8: the enclave asks under use = payload, and KMS finds that the key was not wrapped so."""
    key = kms.data_key(key_arn=key_arn, context={"mrgc:tenant": "acme", "mrgc:use": use})
    before = kms.stats()
    assert caller.decrypt(key.edk, key_arn) == error("auth")
    after = kms.stats()
    refusals = "Decrypt/InvalidCiphertextException"
    assert after["Decrypt"] - before.get("Decrypt", 0) == 1
    assert after[refusals] - before.get(refusals, 0) == 1


def test_a_key_whose_policy_does_not_admit_the_bare_path_gives_nothing(caller: JsonCaller, kms: Kms) -> None:
    """The default policy switches the bare path off, for data keys and payloads alike; sealed jobs are served."""
    key = kms.data_key()
    before = kms.stats().get("Decrypt/AccessDeniedException", 0)
    assert caller.decrypt(key.edk, key.key_arn) == error("key_access")
    assert caller.decrypt(encrypted(kms, key.key_arn, b"x", PAYLOAD), key.key_arn) == error("key_access")
    assert kms.stats()["Decrypt/AccessDeniedException"] == before + 2
    assert plaintext_of(caller.decrypt(key.job(), key.key_arn))


@pytest.mark.parametrize(
    "context",
    [
        {"mrgc:tenant": "acme", "mrgc:use": "job"},
        {"mrgc:use": "payload"},
        PAYLOAD | {"more": "x"},
        {"mrgc:tenant": "globex", "mrgc:use": "payload"},
    ],
)
def test_a_bare_payload_has_exactly_its_own_context(
    caller: JsonCaller, kms: Kms, key_arn: str, context: dict[str, str]
) -> None:
    """Another use, tenant or entry is another ciphertext to KMS."""
    assert caller.decrypt(encrypted(kms, key_arn, b"x", context), key_arn) == error("auth")


def test_a_bare_payload_is_of_the_tenant_that_its_key_admits(caller: JsonCaller, kms: Kms, key_arn: str) -> None:
    """Under another tenant's name the policy of the key refuses the call."""
    assert caller.decrypt(encrypted(kms, key_arn, b"x", PAYLOAD), key_arn, tenant="globex") == error("key_access")


def test_a_bare_payload_is_no_longer_than_a_ciphertext_of_kms(caller: JsonCaller, kms: Kms, key_arn: str) -> None:
    """6,145 bytes are too_large before KMS is asked; 6,144 are KMS's to judge."""
    before = kms.decrypts()
    assert caller.decrypt(bytes(6_145), key_arn) == error("too_large")
    assert kms.decrypts() == before
    assert caller.decrypt(bytes(6_144), key_arn) == error("auth")


# --- pending requests ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sealed", "bare"])
def payload(request: pytest.FixtureRequest, kms: Kms, key_arn: str) -> bytes:
    """Return what can be decrypted under `key_arn`, in both forms."""
    if request.param == "sealed":
        return kms.data_key(key_arn=key_arn).job()
    return encrypted(kms, key_arn, b"x", PAYLOAD)


def test_an_encrypt_without_its_decrypt_seals_nothing(caller: JsonCaller, kms: Kms, key_arn: str) -> None:
    """Statement 11: nothing is sealed that was not opened here, whatever a caller names; KMS is not asked."""
    before = kms.stats().get("GenerateDataKey", 0)
    assert caller.encrypt(b"x", key_arn) == error("unknown_request")
    assert kms.stats().get("GenerateDataKey", 0) == before


def test_an_id_is_pending_from_decrypt_to_encrypt(
    caller: JsonCaller, enclave: RunningEnclave, payload: bytes, key_arn: str
) -> None:
    """A second decrypt with the id is a duplicate on any connection; encrypt consumes it once, and frees it."""
    with JsonCaller(enclave.path) as other:
        plaintext_of(caller.decrypt(payload, key_arn))
        assert caller.decrypt(payload, key_arn) == error("duplicate")
        assert other.decrypt(payload, key_arn) == error("duplicate")
        sealed_of(other.encrypt(b"x", key_arn))
        assert caller.encrypt(b"x", key_arn) == error("unknown_request")
        plaintext_of(caller.decrypt(payload, key_arn))


def test_an_encrypt_names_the_key_of_its_decrypt(caller: JsonCaller, kms: Kms, payload: bytes, key_arn: str) -> None:
    """Another key is refused and consumes nothing."""
    plaintext_of(caller.decrypt(payload, key_arn))
    assert caller.encrypt(b"x", kms.create_key(json_protocol=True)) == error("bad_format")
    sealed_of(caller.encrypt(b"x", key_arn))


def test_a_malformed_encrypt_consumes_nothing(caller: JsonCaller, payload: bytes, key_arn: str) -> None:
    """Bad base64 is refused before the table is looked at."""
    plaintext_of(caller.decrypt(payload, key_arn))
    request = {"action": "encrypt", "kms_key_arn": key_arn, "request_id": "r"}
    assert caller.ask(**request, plaintext_result="?") == error("bad_format")
    assert caller.ask(**request, plaintext_result="") == error("bad_format")
    sealed_of(caller.encrypt(b"x", key_arn))


@pytest.mark.usefixtures("caller")
def test_of_many_decrypts_with_one_id_one_is_served(enclave: RunningEnclave, payload: bytes, key_arn: str) -> None:
    """A race for an id has one winner; the losers are duplicates."""
    answers: list[dict[str, Any]] = []
    barrier = threading.Barrier(8)

    def race() -> None:
        with JsonCaller(enclave.path) as racer:
            barrier.wait()
            answers.append(racer.decrypt(payload, key_arn))

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(str(answer.get("error")) for answer in answers) == ["None", *["duplicate"] * 7]


def test_a_pending_request_dies_with_its_boot(
    caller: JsonCaller, reboot: RunningEnclave, payload: bytes, key_arn: str
) -> None:
    """Another boot of the same image seals nothing for it."""
    plaintext_of(caller.decrypt(payload, key_arn))
    with reboot.caller() as agent, JsonCaller(reboot.path) as stranger:
        agent.hello(json_protocol=True)
        agent.credentials()
        assert stranger.encrypt(b"x", key_arn) == error("unknown_request")


# --- who is served ---------------------------------------------------------------------------------------------------


def requests_of(key: DataKey) -> list[dict[str, Any]]:
    """Return one request of every action but hello."""
    job = base64.b64encode(key.job()).decode()
    return [
        {"action": "health", "request_id": "r"},
        {
            "action": "decrypt",
            "encrypted_payload": job,
            "kms_key_arn": key.key_arn,
            "tenant_id": "acme",
            "request_id": "r",
        },
        {"action": "encrypt", "plaintext_result": "YWE=", "kms_key_arn": key.key_arn, "request_id": "r"},
    ]


def test_without_the_first_hellos_consent_a_stranger_gets_nothing(enclave: RunningEnclave, kms: Kms) -> None:
    """Statement 11: before any hello and after one with json = 0, every action is no_token, health too."""
    requests = requests_of(kms.data_key())
    with enclave.caller() as agent, JsonCaller(enclave.path) as stranger:
        for _ in range(2):
            assert [stranger.ask(**request) for request in requests] == [error("no_token")] * 3
            assert stranger.hello(b"\x08" * 32) == error("no_token", "")
            agent.hello()
        agent.hello(json_protocol=True)  # Only the first one counts.
        assert stranger.ask(**requests[0]) == error("no_token")


def test_a_hello_with_the_token_opens_the_protocol_to_its_own_connection(enclave: RunningEnclave, kms: Kms) -> None:
    """With json = 0, who presents the token is served, and its neighbour is not."""
    key = kms.data_key()
    with enclave.caller() as agent, JsonCaller(enclave.path) as engine, JsonCaller(enclave.path) as stranger:
        assert engine.hello(TOKEN) == error("no_token", "")
        agent.hello()
        agent.credentials()
        assert engine.hello(TOKEN) == {"success": True}
        assert plaintext_of(engine.decrypt(key.job(), key.key_arn)) == b'{"inputs": ["x"]}'
        assert stranger.health() == error("no_token", "h")


def test_a_json_first_hello_gives_strangers_no_binary_operation(caller: JsonCaller, enclave: RunningEnclave) -> None:
    """Statement 11: the JSON protocol's consent is for the JSON protocol."""
    caller.health()
    with enclave.caller() as stranger:
        for op in ("open_batch", "seal_batch", "metrics", "credentials", "attest"):
            assert stranger.code(frames.encode(op, 1, {})) == "no_token"


def test_health_says_what_is_ready_and_nothing_else(enclave: RunningEnclave) -> None:
    """Three fields, as the protocol's document shows them; kms_ready waits for credentials."""
    with enclave.caller() as agent, JsonCaller(enclave.path) as stranger:
        agent.hello(json_protocol=True)
        assert stranger.health() == {"status": "healthy", "attestation_ready": True, "kms_ready": False}
        agent.credentials()
        assert stranger.health() == {"status": "healthy", "attestation_ready": True, "kms_ready": True}


# --- what cannot be read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (b"{", error("bad_format", "")),
        (b'{"action": "attest", "request_id": "r"}', error("unsupported")),
        (b'{"action": "health"}', error("bad_format", "")),
        (b'{"action": "health", "request_id": "r", "more": 1}', error("bad_format")),
        (b'{"action": "health", "request_id": "r", "request_id": "r"}', error("bad_format", "")),
        (b'{"action": "health", "request_id": "' + b"r" * 70_000 + b'"}', error("too_large", "")),
    ],
)
def test_a_request_that_breaks_the_rules_is_answered_and_the_connection_goes_on(
    caller: JsonCaller, body: bytes, answer: dict[str, Any]
) -> None:
    """An error repeats the request_id where one could be read, and the next request is served."""
    assert send_json(caller.sock, body) == answer
    assert caller.health()["status"] == "healthy"


def test_a_request_over_the_cap_is_refused_without_being_kept(caller: JsonCaller) -> None:
    """Between the protocol's cap and the frame's, a request is too_large; the connection goes on."""
    body = b'{"action": "encrypt", "plaintext_result": "' + b"A" * MAX_JSON_FRAME_BYTES + b'"}'
    assert send_json(caller.sock, body) == error("too_large", "")
    assert caller.health()["status"] == "healthy"


def test_a_frame_over_the_frames_cap_ends_the_connection(caller: JsonCaller) -> None:
    """64 MiB and one byte get no answer."""
    caller.sock.sendall(struct.pack(">I", frames.MAX_FRAME_BYTES + 1) + b"{")
    assert caller.is_closed()


def test_a_stranger_may_be_long_in_json_only(caller: JsonCaller, enclave: RunningEnclave) -> None:
    """Being served JSON lets nobody fill the memory with binary frames."""
    caller.health()
    with enclave.caller() as stranger:
        stranger.sock.sendall(struct.pack(">I", MAX_STRANGER_FRAME_BYTES + 1) + b"\x00")
        assert stranger.is_closed()


def test_a_job_of_megabytes_passes_both_ways(caller: JsonCaller, kms: Kms) -> None:
    """Payload and result may be far longer than a frame that a stranger may send in binary."""
    key = kms.data_key()
    body = json.dumps({"inputs": ["x" * 4_000_000]}).encode()
    assert plaintext_of(caller.decrypt(key.job(body), key.key_arn)) == body
    result = parse_result(sealed_of(caller.encrypt(body, key.key_arn)))
    assert open_result(result, data_key=key.plaintext) == body
    assert result.header.type == "application/json"


def test_binary_and_json_requests_take_turns_on_one_connection(enclave: RunningEnclave, kms: Kms) -> None:
    """Each frame says by its first byte what it is."""
    key = kms.data_key()
    with enclave.serving() as engine:
        opened = engine.open_one(key.job())
        answer = send_json(engine.sock, json.dumps({"action": "health", "request_id": "r"}).encode())
        assert answer["status"] == "healthy"
        assert bytes(engine.open_one(key.job()).plaintext) == bytes(opened.plaintext)
        assert engine.metrics()["json_requests"] == 1


def test_a_stranger_that_is_served_json_may_think_for_longer(tmp_path: Path, pki: Path, kms: Kms) -> None:
    """Between decrypt and encrypt lies an inference: its connection is not cut like that of an idle stranger."""
    limits = Limits(stranger_s=0.3, json_s=30)
    running = RunningEnclave(tmp_path / "p.sock", LocalNsm(pki, PCRS), kms, limits=limits)
    try:
        with JsonCaller(running.path) as idle:
            assert idle.is_closed()  # Nobody has consented yet.
        with running.caller() as agent, JsonCaller(running.path) as stranger:
            agent.hello(json_protocol=True)
            stranger.health()
            stranger.sock.settimeout(2)
            with pytest.raises(TimeoutError):
                stranger.sock.recv(1)
            stranger.sock.settimeout(20)
            assert stranger.health()["status"] == "healthy"
    finally:
        running.stop()


# --- what stays inside -----------------------------------------------------------------------------------------------


def test_a_defect_tells_its_class_to_the_log_and_nothing_to_the_caller(
    caller: JsonCaller, kms: Kms, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception that nobody expected is `internal`; its text stays inside, and its id is free again."""
    key = kms.data_key()

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("canary text")

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "open_job", fail)
        assert caller.decrypt(key.job(), key.key_arn) == error("internal")
    assert "RuntimeError" in caplog.text
    assert "canary" not in caplog.text
    assert plaintext_of(caller.decrypt(key.job(), key.key_arn))


def test_neither_payload_nor_key_is_logged(caller: JsonCaller, kms: Kms, caplog: pytest.LogCaptureFixture) -> None:
    """Statement 8: a canary plaintext and its data key appear in no log line, success or failure."""
    key = kms.data_key()
    job = key.job(b"canary-plaintext")
    # From here on: the tenant's own KMS client, in this process, logs its data key.
    caplog.set_level(0)
    plaintext_of(caller.decrypt(job, key.key_arn))
    caller.encrypt(b"canary-result", key.key_arn)
    caller.decrypt(job[:-1], key.key_arn)
    caller.encrypt(b"canary-result", key.key_arn)
    shown = caplog.text + "".join(repr(record.args) for record in caplog.records)
    secrets = [b"canary-plaintext", b"canary-result", key.plaintext]
    for secret in secrets:
        forms = (repr(secret)[2:-1], secret.hex(), base64.b64encode(secret).decode())
        assert not [form for form in forms if form in shown]


def test_another_tenants_data_key_opens_no_answer(caller: JsonCaller, kms: Kms, key_arn: str) -> None:
    """A standalone object opens under its own data key alone."""
    plaintext_of(caller.decrypt(encrypted(kms, key_arn, b"x", PAYLOAD), key_arn))
    sealed = parse_standalone(sealed_of(caller.encrypt(b"an answer", key_arn)))
    with pytest.raises(AuthenticationError):
        open_standalone(sealed, data_key=kms.data_key(key_arn=key_arn).plaintext)
