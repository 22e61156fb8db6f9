"""The JSON protocol towards a KMS that lies, and one that is overrun.

The bare path rests on TLS alone: a false KMS under an accepted certificate could forge what it returns. It cannot make
an answer of another shape, key or length count.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enclave import kms_budget, kms_calls
from infra.local_nsm import LocalNsm
from mrgc.wire.sealed import open_standalone, parse_standalone
from tests.enclave.faulty_kms import FaultyKms, refusal
from tests.enclave.json_caller import JsonCaller, error, plaintext_of, sealed_of
from tests.enclave.stack import PCRS, Kms, RunningEnclave
from tests.waiting import until

ARN = "arn:aws:kms:eu-west-1:444455556666:key/1234abcd"
KEY = bytes(range(32))


class Rig:
    """A false KMS, and a caller of the enclave that is led to it."""

    def __init__(self, kms: FaultyKms, enclave: RunningEnclave, caller: JsonCaller) -> None:
        self.kms = kms
        self.enclave = enclave
        self.caller = caller

    def says(self, secret: bytes, **changes: Any) -> None:
        """Let the KMS answer either operation well from now on; `changes` replace members, None removes them."""
        good = {
            "KeyId": ARN,
            "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
            "CiphertextBlob": base64.b64encode(b"wrapped").decode(),
        }
        self.kms.script = [self.kms.honest(secret, good | changes)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, pki: Path) -> Iterator[Rig]:
    """Run an enclave that serves JSON to all, led to a false KMS."""
    directory = tmp_path_factory.mktemp("false")
    with (
        FaultyKms(directory) as kms,
        RunningEnclave(directory / "f.sock", LocalNsm(pki, PCRS), kms) as enclave,
        enclave.caller() as agent,
        JsonCaller(enclave.path) as caller,
    ):
        agent.hello(json_protocol=True)
        agent.credentials()
        yield Rig(kms, enclave, caller)


@pytest.fixture
def rig(running: Rig) -> Rig:
    """Return it with nothing seen yet and nothing pending under `r`."""
    running.says(b"x")
    running.caller.encrypt(b"x", ARN)
    running.kms.forget()
    return running


def test_decrypt_asks_for_exactly_one_context_and_generate_for_another(rig: Rig) -> None:
    """What KMS is asked is fixed by docs/spec.md §8; the caller's tenant is the one thing that it chooses."""
    rig.says(b"a plaintext")
    assert plaintext_of(rig.caller.decrypt(b"ciphertext", ARN)) == b"a plaintext"
    rig.says(KEY)
    sealed = parse_standalone(sealed_of(rig.caller.encrypt(b"an answer", ARN)))
    assert open_standalone(sealed, data_key=KEY) == b"an answer"
    assert sealed.header.edk == b"wrapped"
    decrypt, generate = rig.kms.requests
    assert decrypt.header("X-Amz-Target") == "TrentService.Decrypt"
    assert decrypt.body.pop("Recipient").keys() == {"KeyEncryptionAlgorithm", "AttestationDocument"}
    assert decrypt.body == {
        "KeyId": ARN,
        "CiphertextBlob": base64.b64encode(b"ciphertext").decode(),
        "EncryptionContext": {"mrgc:tenant": "acme", "mrgc:use": "payload"},
        "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
    }
    assert generate.header("X-Amz-Target") == "TrentService.GenerateDataKey"
    assert generate.body.pop("Recipient").keys() == {"KeyEncryptionAlgorithm", "AttestationDocument"}
    assert generate.body == {
        "KeyId": ARN,
        "KeySpec": "AES_256",
        "EncryptionContext": {"mrgc:tenant": "acme", "mrgc:use": "standalone"},
    }


FOREIGN = [
    {"Plaintext": base64.b64encode(KEY).decode()},
    {"Plaintext": base64.b64encode(KEY).decode(), "CiphertextForRecipient": None},
    {"CiphertextForRecipient": None},
    {"CiphertextForRecipient": base64.b64encode(b"\x30\x80").decode()},
    {"KeyId": ARN.replace("1234abcd", "00000000")},
    {"KeyId": None},
]


@pytest.mark.parametrize("changes", [*FOREIGN, {"EncryptionAlgorithm": None}], ids=",".join)
def test_a_bare_plaintext_comes_only_in_an_answer_of_kms_own_shape(rig: Rig, changes: dict[str, Any]) -> None:
    """Statement 3: a Plaintext, another key, or no ciphertext for this enclave gives nothing."""
    rig.says(KEY, **changes)
    assert rig.caller.decrypt(b"ciphertext", ARN) == error("auth")
    assert rig.caller.encrypt(b"x", ARN) == error("unknown_request")


@pytest.mark.parametrize(
    "changes",
    [*FOREIGN, {"CiphertextBlob": None}, {"CiphertextBlob": ""}, {"CiphertextBlob": "A" * 8_196}],
    ids=",".join,
)
def test_a_standalone_key_comes_only_in_an_answer_of_kms_own_shape(rig: Rig, changes: dict[str, Any]) -> None:
    """Statement 3: nothing is sealed under a key that came in the clear, of another key, or without its edk."""
    rig.says(b"a plaintext")
    plaintext_of(rig.caller.decrypt(b"ciphertext", ARN))
    rig.says(KEY, **changes)
    assert rig.caller.encrypt(b"x", ARN) == error("auth")


@pytest.mark.parametrize("size", [1, 16, 31, 33, 64])
def test_a_standalone_key_has_32_bytes(rig: Rig, size: int) -> None:
    """Here the rule of 32 bytes holds."""
    rig.says(b"a plaintext")
    plaintext_of(rig.caller.decrypt(b"ciphertext", ARN))
    rig.says(bytes(size))
    assert rig.caller.encrypt(b"x", ARN) == error("auth")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("InvalidCiphertextException", "auth"),
        ("AccessDeniedException", "key_access"),
        ("DisabledException", "key_access"),
        ("ThrottlingException", "key_busy"),
        ("ExpiredTokenException", "key_busy"),
    ],
)
def test_a_refusal_of_kms_has_its_code_and_no_text(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, code: str, expected: str
) -> None:
    """The codes of docs/spec.md §7, for both operations; what KMS says besides stays inside."""
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _s: None)
    rig.kms.script = [refusal(code)]
    assert rig.caller.decrypt(b"ciphertext", ARN) == error(expected)
    rig.says(b"x")
    plaintext_of(rig.caller.decrypt(b"ciphertext", ARN))
    rig.kms.script = [refusal(code)]
    assert rig.caller.encrypt(b"x", ARN) == error(expected)


def test_a_region_outside_the_image_is_not_dialled(rig: Rig) -> None:
    """Endpoints come from the measured image, whatever ARN a caller names."""
    assert rig.caller.decrypt(b"ciphertext", ARN.replace("eu-west-1", "mars-west-1")) == error("key_access")
    assert rig.kms.dials == []


def test_a_kms_under_another_authority_is_not_spoken_to(tmp_path: Path, pki: Path, kms: Kms) -> None:
    """Statement 3: with a wrong CA nothing is sent, the path is busy, and health says so."""

    class Misled:
        """The real KMS, and the CA of another one."""

        ca = tmp_path / "ca.pem"
        dial = kms.dial

    with (
        FaultyKms(tmp_path),
        RunningEnclave(tmp_path / "e.sock", LocalNsm(pki, PCRS), Misled()) as enclave,
        enclave.caller() as agent,
        JsonCaller(enclave.path) as caller,
    ):
        agent.hello(json_protocol=True)
        agent.credentials()
        before = kms.stats()
        assert caller.decrypt(b"ciphertext", ARN) == error("key_busy")
        assert kms.stats() == before
        assert caller.health() == {"status": "healthy", "attestation_ready": True, "kms_ready": False}


def test_one_tenants_calls_are_within_its_budget(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statement 9: who floods KMS under one tenant's name is told key_busy; another tenant is served."""
    monkeypatch.setattr(kms_budget, "BURST_CALLS", 3.0)
    monkeypatch.setattr(kms_budget, "CALLS_PER_S", 0.0)
    rig.says(KEY)
    decrypt, encrypt = rig.caller.decrypt, rig.caller.encrypt
    replies = [
        decrypt(b"ciphertext", ARN, "1", tenant="flooder"),
        encrypt(b"x", ARN, "1"),
        decrypt(b"ciphertext", ARN, "2", tenant="flooder"),
        encrypt(b"x", ARN, "2"),
        decrypt(b"ciphertext", ARN, "3", tenant="flooder"),
    ]
    assert [reply.get("error") for reply in replies] == [None, None, None, "key_busy", "key_busy"]
    assert len(rig.kms.requests) == 3
    assert plaintext_of(decrypt(b"ciphertext", ARN, tenant="quiet")) == KEY


def test_a_call_that_waits_too_long_in_line_is_busy_and_leaves_no_plaintext(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind two hanging calls of its tenant a third gives up in time; nothing is pending under its id."""
    monkeypatch.setattr(kms_calls, "KEY_WAIT_S", 0.3)
    rig.kms.script = [rig.kms.hang]
    with JsonCaller(rig.enclave.path) as first, JsonCaller(rig.enclave.path) as second:
        callers = [
            threading.Thread(target=each.decrypt, args=(b"ciphertext", ARN, name), kwargs={"tenant": "slow"})
            for each, name in ((first, "first"), (second, "second"))
        ]
        for thread in callers:
            thread.start()
        until(lambda: len(rig.kms.requests) == 2, within_s=10, what="both lanes to be taken")
        assert rig.caller.decrypt(b"ciphertext", ARN, "third", tenant="slow") == error("key_busy", "third")
        assert rig.caller.encrypt(b"x", ARN, "third") == error("unknown_request", "third")
        rig.kms.script = [refusal("AccessDeniedException")]
        rig.kms.hang_up()
        for thread in callers:
            thread.join(20)
            assert not thread.is_alive()
    # Nobody waits for the three calls any more, but they go on: two are tried again, the third is made.
    until(lambda: len(rig.kms.requests) == 5, within_s=20, what="every call to have its answer")
