"""What must never be in an answer of the enclave: searched for in the bytes that came, whatever was asked."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enclave import key_cache
from infra.local_nsm import LocalNsm
from mrgc.errors import AuthenticationError, ResultRefused
from mrgc.results import open_result_of
from mrgc.submitted import SubmittedJob
from mrgc.wire import enclave_protocol, frames
from mrgc.wire.enclave_protocol import AttestRequest, Op, SealRequest, Use
from mrgc.wire.sealed import parse_job
from mrgc.wire.strict_cbor import Buffer
from tests.enclave.faulty_kms import FaultyKms
from tests.enclave.json_caller import JsonCaller, error
from tests.enclave.stack import MODEL, PCRS, TOKEN, DataKey, Kms, RunningEnclave, seal_request

CANARY = b"canary plaintext 8d1f"


@pytest.fixture
def served(enclave: RunningEnclave) -> Iterator[RunningEnclave]:
    """An enclave with credentials, which serves the JSON protocol to everybody."""
    with enclave.caller() as agent:
        assert agent.hello(json_protocol=True) is None
        assert agent.credentials() is None
        yield enclave


def raw_answer(running: RunningEnclave, request: list[Buffer]) -> bytes:
    """Send one binary request with the token and return the answer's bytes."""
    with running.caller() as caller:
        assert caller.hello() is None
        frames.send(caller.sock, request)
        return bytes(frames.recv_body(caller.sock, frames.recv_length(caller.sock)))


@pytest.mark.parametrize("floor", [1, 2, 3])
def test_below_its_floor_a_job_is_not_released_by_either_protocol(served: RunningEnclave, kms: Kms, floor: int) -> None:
    """Statement 5: open_batch and decrypt answer trust_floor, and no byte of the payload."""
    key = kms.data_key()
    job = key.job(CANARY, floor=floor)
    found = raw_answer(served, enclave_protocol.open_batch_request(1, [job, key.job(CANARY[::-1])]))
    assert CANARY not in found
    assert CANARY[::-1] in found  # its batch mate is there: the search can find
    with JsonCaller(served.path) as caller:
        assert caller.decrypt(job, key.key_arn) == error("trust_floor")


def spellings(secret: bytes) -> list[bytes]:
    """The forms in which a secret could be written down; base64 less its ends, which depend on the neighbours."""
    return [secret, secret.hex().encode(), *(base64.b64encode(bytes(shift) + secret)[4:-4] for shift in range(3))]


def requests_with(edk: bytes, token: bytes) -> dict[str, list[Buffer]]:
    """A wrapped key, put wherever a binary op takes bytes or text of a caller."""
    text = base64.b64encode(edk).decode()
    claims = {"request": edk[:32], "ticket": edk[:40], "status": "ok", "model": MODEL, "type": "application/json"}
    return {
        "open_batch": enclave_protocol.open_batch_request(1, [edk, b"mrgc" + edk]),
        "seal_batch": enclave_protocol.seal_batch_request(
            1, [SealRequest(edk[:32], edk[:40], "ok", MODEL, "", edk, edk)]
        ),
        "seal_batch as claims": frames.encode("seal_batch", 1, {"results": [claims]}, [edk, edk]),
        "attest": enclave_protocol.attest_request(1, AttestRequest(edk[:64], Use.IDENTITY)),
        "attest with a key": frames.encode("attest", 1, {"nonce": edk[:32], "use": "identity", "public_key": edk}),
        "hello": frames.encode("hello", 1, {"token": token, "json": 1, "edk": edk}),
        "credentials": frames.encode(
            "credentials", 1, {"access_key": text, "secret_key": text, "token": text, "expires": 1 << 39}
        ),
        "health": enclave_protocol.plain_request(1, Op.HEALTH),
        "metrics": enclave_protocol.plain_request(1, Op.METRICS),
        "decrypt": frames.encode("decrypt", 1, {"edk": edk}, [edk]),
        "join": frames.encode("join", 1, {}, [edk, edk]),
        "infer_batch": frames.encode("infer_batch", 1, {}, [edk]),
    }


def test_no_op_turns_a_wrapped_data_key_into_a_data_key(served: RunningEnclave, kms: Kms) -> None:
    """Statement 8: no op that a wrapped key is sent through answers the data key, though the cache holds it."""
    key = kms.data_key(key_arn=kms.create_key(json_protocol=True))
    job = key.job(CANARY)
    assert CANARY in raw_answer(served, enclave_protocol.open_batch_request(1, [job]))
    for op, request in requests_with(key.edk, TOKEN).items():
        found = raw_answer(served, request)
        assert not any(spelling in found for spelling in spellings(key.plaintext)), op


def test_no_json_action_turns_a_wrapped_data_key_into_a_data_key(served: RunningEnclave, kms: Kms) -> None:
    """Statement 8: nor does any action of the JSON protocol, in any of its members."""
    key = kms.data_key(key_arn=kms.create_key(json_protocol=True))
    job, text = key.job(CANARY), base64.b64encode(key.edk).decode()
    base: dict[str, Any] = {"kms_key_arn": key.key_arn, "tenant_id": "acme", "request_id": "r"}
    asked: list[dict[str, Any]] = [
        {"action": "decrypt", "encrypted_payload": text} | base,
        {"action": "decrypt", "encrypted_payload": base64.b64encode(b"mrgc" + key.edk).decode()} | base,
        {"action": "decrypt", "encrypted_payload": text} | base | {"request_id": text[:128]},
        {"action": "encrypt", "plaintext_result": text, "kms_key_arn": key.key_arn, "request_id": "r"},
        {"action": "health", "request_id": text[:128]},
        {"action": text, "request_id": "r"},
    ]
    with JsonCaller(served.path) as caller:
        assert caller.decrypt(job, key.key_arn, "opened")["success"]
        for members in asked:
            found = json.dumps(caller.ask(**members)).encode()
            assert not any(spelling in found for spelling in spellings(key.plaintext)), members["action"]
        # What a job's own encrypt gives is sealed under the data key, and does not show it either.
        sealed = caller.encrypt(key.edk, key.key_arn, "opened")
        assert not any(spelling in json.dumps(sealed).encode() for spelling in spellings(key.plaintext))


def told(key: DataKey, **changes: str | None) -> dict[str, str | None]:
    """Return what KMS says of the job's key, beside the ciphertext."""
    return {"KeyId": key.key_arn, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT", **changes}


@pytest.mark.parametrize("in_the_clear", [False, True], ids=["forged ciphertext", "plaintext"])
def test_a_kms_that_turns_false_after_the_opening_makes_no_result_accepted(
    tmp_path: Path, pki: Path, kms: Kms, monkeypatch: pytest.MonkeyPatch, in_the_clear: bool
) -> None:
    """Statement 3: under a key that a false KMS makes up, a result is refused by its tenant; in the clear, none."""
    monkeypatch.setattr(key_cache, "MAX_AGE_S", 0.0)  # so that sealing asks again
    key, made_up = kms.data_key(), b"\x42" * 32
    job = key.job()
    with (
        FaultyKms(tmp_path) as false,
        RunningEnclave(tmp_path / "f.sock", LocalNsm(pki, PCRS), false) as running,
        running.serving() as caller,
    ):
        false.script = [false.honest(key.plaintext, told(key))]
        opened = caller.open_one(job)
        plain = {"CiphertextForRecipient": None, "Plaintext": base64.b64encode(made_up).decode()}
        false.script = [false.honest(made_up, told(key, **(plain if in_the_clear else {})))]
        (sealed,) = caller.seal([seal_request(opened, job)])
    if in_the_clear:
        assert isinstance(sealed, AuthenticationError)
        return
    assert isinstance(sealed, memoryview)
    record = SubmittedJob.of(parse_job(job))
    with pytest.raises(ResultRefused, match="does not authenticate"):
        open_result_of(record, sealed, key_arn=key.key_arn, data_key_for=lambda _: key.plaintext)
