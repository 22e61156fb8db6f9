from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from enclave.nsm import NsmError
from infra.local_nsm import LocalNsm
from mrgc.attest.cose import parse_sign1
from mrgc.attest.document import Kind, parse_document
from mrgc.wire import enclave_protocol, frames
from mrgc.wire.enclave_protocol import AttestRequest, Op, SealRequest, Use
from mrgc.wire.strict_cbor import Buffer
from tests.enclave.faulty_kms import FaultyKms
from tests.enclave.stack import MODEL, PCRS, TOKEN, Caller, Kms, RunningEnclave

ATTEST = enclave_protocol.attest_request(9, AttestRequest(b"n" * 16, Use.IDENTITY))
SEAL = enclave_protocol.seal_batch_request(
    9, [SealRequest(bytes(32), bytes(40), "ok", MODEL, "application/json", b"aad", b"body")]
)
GUARDED: dict[str, list[Buffer]] = {
    "open_batch": enclave_protocol.open_batch_request(9, [b"job"]),
    "seal_batch": SEAL,
    "metrics": enclave_protocol.plain_request(9, Op.METRICS),
    "credentials": frames.encode("credentials", 9, {"access_key": "a", "secret_key": "b", "token": "", "expires": 1}),
    "challenge": frames.encode("challenge", 9, {}),
    "nonsense": frames.encode("nonsense", 9, {}),
}


@pytest.mark.parametrize("op", GUARDED)
def test_without_a_token_nothing_is_served(enclave: RunningEnclave, op: str) -> None:
    """Statement 11: before a hello, after it and after a wrong one, strangers get no_token for guarded ops."""
    with enclave.caller() as stranger:
        assert stranger.code(GUARDED[op]) == "no_token"
        with enclave.caller() as agent:
            assert agent.hello() is None
        assert stranger.code(GUARDED[op]) == "no_token"
        assert stranger.hello(b"\x08" * 32) == "no_token"
        assert stranger.code(GUARDED[op]) == "no_token"
        assert stranger.hello(TOKEN) is None
        assert stranger.code(GUARDED[op]) != "no_token"


def test_attest_is_open_before_the_first_hello_only(enclave: RunningEnclave) -> None:
    """Statement 11: whoever locks the enclave may look at its document first; afterwards it takes the token."""
    with enclave.caller() as stranger, enclave.caller() as agent:
        assert stranger.code(ATTEST) is None
        agent.hello()
        assert stranger.code(ATTEST) == "no_token"
        assert agent.code(ATTEST) is None


def test_one_of_many_first_hellos_sets_the_token(enclave: RunningEnclave) -> None:
    """When two tokens race for a fresh enclave, one wins and the other is refused."""
    codes: list[str | None] = []
    barrier = threading.Barrier(8)

    def race(token: bytes) -> None:
        with enclave.caller() as caller:
            barrier.wait()
            codes.append(caller.hello(token))

    threads = [threading.Thread(target=race, args=(bytes([number]) * 32,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(codes, key=str) == [None, *["no_token"] * 7]


@pytest.mark.parametrize(
    ("op", "header", "blobs"),
    [
        ("hello", {"token": TOKEN}, []),
        ("hello", {"token": TOKEN[:-1], "json": 0}, []),
        ("hello", {"token": TOKEN, "json": 2}, []),
        ("hello", {"token": TOKEN, "json": 0, "more": 1}, []),
        ("attest", {"nonce": bytes(15), "use": "identity"}, []),
        ("attest", {"nonce": bytes(65), "use": "identity"}, []),
        ("attest", {"nonce": bytes(16), "use": "kms"}, []),
        ("attest", {"nonce": bytes(16), "use": "identity", "public_key": b"x"}, []),
        ("attest", {"nonce": bytes(16), "use": "identity", "user_data": b"x"}, []),
        ("credentials", {"access_key": "a", "secret_key": "b", "token": 0, "expires": 1}, []),
        ("credentials", {"access_key": "", "secret_key": "b", "token": "", "expires": 1}, []),
        ("open_batch", {}, []),
        ("open_batch", {"more": 1}, [b"job"]),
        ("seal_batch", {"results": []}, []),
        ("seal_batch", {"results": [{}]}, [b"a", b"b"]),
        ("seal_batch", {"results": [{"request": b"", "ticket": b"", "status": "", "model": "", "type": ""}]}, [b"a"]),
        ("seal_batch", {"results": ["text"]}, [b"a", b"b"]),
    ],
)
def test_a_malformed_request_is_bad_format_and_the_connection_goes_on(
    caller: Caller, op: str, header: dict[str, object], blobs: list[bytes]
) -> None:
    """Statement 11: unknown keys, such as a caller's own claims, and mistyped ones cost one answer."""
    answered = caller.ask(frames.encode(op, 77, header, blobs))
    assert (answered.op, answered.id, answered.header, answered.blobs) == (op, 77, {"code": "bad_format"}, [])
    assert caller.health().hello


def test_an_unknown_op_is_unsupported(caller: Caller) -> None:
    """Ops of other versions get a code of their own."""
    for op in ("challenge", "join", "infer_batch", ""):
        assert caller.ask(frames.encode(op, 1, {})).header == {"code": "unsupported"}


def test_health_tells_what_is_ready(enclave: RunningEnclave) -> None:
    """Health goes from a locked-out start to ready when credentials come, and back when they expire."""
    with enclave.caller() as watcher:
        before = watcher.health()
        assert (before.hello, before.attestation_ready, before.kms_ready) == (False, True, False)
        with enclave.serving() as agent:
            during = watcher.health()
            assert (during.hello, during.kms_ready, during.connections) == (True, True, 2)
            agent.credentials(expires=int(time.time()) - 1)
            assert not watcher.health().kms_ready
        assert during.boot == before.boot
        assert len(bytes.fromhex(before.boot)) == 8


def test_the_document_of_a_caller_carries_its_nonce_and_no_key(caller: Caller) -> None:
    """What attest gives to a caller cannot be used towards KMS: it has no public key."""
    made = caller.attest(AttestRequest(b"0123456789abcdef", Use.RECEIPT))
    found = parse_document(parse_sign1(made).payload, kind=Kind.ENCLAVE)
    assert (found.nonce, found.public_key) == (b"0123456789abcdef", None)


def test_expired_credentials_are_the_fleets_fault(caller: Caller, kms: Kms) -> None:
    """Without valid credentials a job is key_busy, to be tried again; with them it opens."""
    job = kms.data_key().job()
    caller.credentials(expires=int(time.time()) - 1)
    assert caller.open_codes([job]) == ["key_busy"]
    caller.credentials()
    assert caller.open_codes([job]) == ["ok"]


def test_wrong_credentials_are_the_fleets_fault(caller: Caller, kms: Kms) -> None:
    """A signature that KMS refuses never dead-letters a job."""
    wrong = enclave_protocol.Credentials("AKSERVICE", "not the secret", "service-session", int(time.time()) + 99)
    assert caller.code(enclave_protocol.credentials_request(1, wrong)) is None
    assert caller.open_codes([kms.data_key().job()]) == ["key_busy"]
    assert caller.health().kms_ready  # KMS did answer.


@pytest.mark.parametrize(
    "lie", [{}, {"CiphertextForRecipient": None, "Plaintext": "QUFB"}], ids=["forged ciphertext", "plaintext"]
)
def test_a_false_kms_opens_nothing(tmp_path: Path, pki: Path, kms: Kms, lie: dict[str, str | None]) -> None:
    """Statement 3: a KMS under an accepted certificate that makes up a data key in any form opens no job."""
    key = kms.data_key()
    with FaultyKms(tmp_path) as false, RunningEnclave(tmp_path / "f.sock", LocalNsm(pki, PCRS), false) as running:
        told = {"KeyId": key.key_arn, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}
        false.script = [false.honest(b"\x42" * 32, told | lie)]
        with running.serving() as caller:
            assert caller.open_codes([key.job(), key.job()]) == ["auth", "auth"]


class FailingNsm(LocalNsm):
    """An NSM that fails in a talkative way, when told to."""

    failure: Exception | None = None

    def attest(self, *, public_key: bytes | None, user_data: bytes | None, nonce: bytes | None) -> bytes:
        """Sign, or fail."""
        if self.failure is not None:
            raise self.failure
        return super().attest(public_key=public_key, user_data=user_data, nonce=nonce)


@pytest.mark.parametrize("failure", [NsmError("canary of the inside"), RuntimeError("canary of the inside")])
def test_an_answer_carries_a_code_and_no_text(
    tmp_path: Path, pki: Path, kms: Kms, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Statement 8: whatever fails inside, the answer is `internal`, the log names a class, no text gets out."""
    nsm = FailingNsm(pki, PCRS)
    with RunningEnclave(tmp_path / "f.sock", nsm, kms) as running, running.serving() as caller:
        nsm.failure = failure
        frames.send(caller.sock, ATTEST)
        raw = bytes(frames.recv_body(caller.sock, frames.recv_length(caller.sock)))
        assert raw == b"".join(frames.encode("attest", 9, {"code": "internal"}))[frames.LENGTH_BYTES :]
        nsm.failure = None
        assert caller.code(ATTEST) is None
    assert "canary" not in caplog.text
