"""The JSON protocol as its original document shows it: a client that knows that document and nothing else.

`Parent` uses a socket, a length prefix and JSON; it shares no code with the product. Decrypt and encrypt calls, their
fields and answers are those of the document; the enclave is a whole one-machine stack's, started with --json-protocol.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import boto3
import pytest

from infra.local_enclave import REPOSITORY
from mrgc.wire import sealed
from tests.e2e.conftest import START_S, RunningStack
from tests.waiting import until


class Parent:
    """A parent instance's application, written from the protocol's document."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._path = path

    def __enter__(self) -> Self:
        try:
            self._socket.connect(self._path)
        except OSError:
            self._socket.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send one length-prefixed JSON message and read the answer."""
        body = json.dumps(message).encode()
        self._socket.sendall(struct.pack(">I", len(body)) + body)
        (length,) = struct.unpack(">I", self._exactly(4))
        answer: dict[str, Any] = json.loads(self._exactly(length))
        return answer

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            assert part, "the enclave closed the connection"
            data += part
        return data


@dataclass(frozen=True)
class JsonStack:
    """A stack that serves the JSON protocol, and a tenant with nothing but KMS."""

    running: RunningStack

    @cached_property
    def env(self) -> dict[str, str]:
        """The shell exports of acme."""
        return self.running.env("acme")

    @cached_property
    def kms(self) -> Any:
        """Acme's own KMS client."""
        return boto3.client(
            "kms",
            region_name=self.env["AWS_DEFAULT_REGION"],
            endpoint_url=self.env["AWS_ENDPOINT_URL_KMS"],
            verify=self.env["AWS_CA_BUNDLE"],
            aws_access_key_id=self.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.env["AWS_SECRET_ACCESS_KEY"],
        )

    def parent(self) -> Parent:
        """Connect to the enclave."""
        return Parent(self.env["MRGC_ENCLAVE"].removeprefix("unix:"))

    def encrypted(self, plaintext: bytes, use: str = "payload") -> str:
        """Encrypt a request as a tenant does, in base64."""
        made = self.kms.encrypt(
            KeyId=self.env["MRGC_KEY_ARN"],
            Plaintext=plaintext,
            EncryptionContext={"mrgc:tenant": "acme", "mrgc:use": use},
        )
        return base64.b64encode(made["CiphertextBlob"]).decode()

    def decrypt_message(self, payload: str, request_id: str) -> dict[str, Any]:
        """Return the document's decrypt request."""
        return {
            "action": "decrypt",
            "encrypted_payload": payload,
            "kms_key_arn": self.env["MRGC_KEY_ARN"],
            "tenant_id": "acme",
            "request_id": request_id,
        }

    def encrypt_message(self, result: bytes, request_id: str) -> dict[str, Any]:
        """Return the document's encrypt request."""
        return {
            "action": "encrypt",
            "plaintext_result": base64.b64encode(result).decode(),
            "kms_key_arn": self.env["MRGC_KEY_ARN"],
            "request_id": request_id,
        }


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JsonStack]:
    """Run a stack of one tenant with the JSON protocol switched on."""
    directory: Path = tmp_path_factory.mktemp("json")
    command = [sys.executable, "-m", "infra.local", "up", "--dir", str(directory), "--tenants", "acme"]
    with (directory / "local.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--threads", "1", "--json-protocol"], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=log
        )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n", (directory / "local.log").read_text()
        yield JsonStack(RunningStack(directory))
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=START_S)
    assert process.returncode == 0


def test_the_documents_exchange_works_from_end_to_end(stack: JsonStack) -> None:
    """Health, decrypt and encrypt answer with the document's fields, and the tenant alone opens the response."""
    with stack.parent() as parent:
        health = parent.request({"action": "health", "request_id": "health-check-1"})
        assert health == {"status": "healthy", "attestation_ready": True, "kms_ready": True}
        opened = parent.request(stack.decrypt_message(stack.encrypted(b"a question"), "req-abc-123"))
        plaintext = base64.b64encode(b"a question").decode()
        assert opened == {"plaintext": plaintext, "success": True, "request_id": "req-abc-123"}
        answer = parent.request(stack.encrypt_message(b"an answer", "req-abc-123"))
    assert answer.keys() == {"encrypted_response", "success", "request_id"}
    assert (answer["success"], answer["request_id"]) == (True, "req-abc-123")
    made = sealed.parse_standalone(base64.b64decode(answer["encrypted_response"], validate=True))
    data_key = stack.kms.decrypt(
        KeyId=stack.env["MRGC_KEY_ARN"], CiphertextBlob=made.header.edk, EncryptionContext=made.header.context
    )["Plaintext"]
    assert sealed.open_standalone(made, data_key=data_key) == b"an answer"
    assert made.header.request_id == "req-abc-123"
    with stack.running.client("acme") as client:
        found = client.open_standalone(base64.b64decode(answer["encrypted_response"]))
    assert (found.request_id, found.body) == ("req-abc-123", b"an answer")


def test_errors_have_the_one_shape_and_the_connection_goes_on(stack: JsonStack) -> None:
    """Unknown actions, missing fields, unknown requests and foreign ciphertexts: success is false, and why."""
    health = {"action": "health", "request_id": "h"}
    bad: list[tuple[dict[str, Any], str]] = [
        ({"action": "attest", "request_id": "r"}, "unsupported"),
        ({"action": "decrypt", "request_id": "r"}, "bad_format"),
        (stack.encrypt_message(b"x", "r"), "unknown_request"),
        (stack.decrypt_message("?", "r"), "bad_format"),
        (stack.decrypt_message(base64.b64encode(os.urandom(200)).decode(), "r"), "auth"),
        (stack.decrypt_message(stack.encrypted(b"x"), "r") | {"tenant_id": "globex"}, "key_access"),
    ]
    with stack.parent() as parent:
        for message, code in bad:
            assert parent.request(message) == {"success": False, "error": code, "request_id": "r"}
            assert parent.request(health)["status"] == "healthy"


def test_no_wrapped_data_key_comes_back(stack: JsonStack) -> None:
    """Statement 8: sent as a bare payload, the wrapped key of a sealed job is refused, and the job is served."""
    with stack.running.client("acme") as client, stack.parent() as parent:
        submitted = client.submit(["a text"])
        edk = base64.b64encode(submitted[0].edk).decode()
        refused = parent.request(stack.decrypt_message(edk, "r"))
        assert refused == {"success": False, "error": "auth", "request_id": "r"}
        (outcome,) = client.wait(submitted, timeout_s=60)
    assert outcome.state == "ok"


def test_a_restarted_enclave_serves_again_and_forgets_what_was_pending(stack: JsonStack) -> None:
    """The agent opens the JSON protocol on every boot; what another boot decrypted is unknown to this one."""
    with stack.parent() as parent:
        assert parent.request(stack.decrypt_message(stack.encrypted(b"x"), "kept"))["success"]
    stack.running.kill("enclave")

    def is_ready() -> bool:
        try:
            with stack.parent() as parent:
                return bool(parent.request({"action": "health", "request_id": "h"}).get("kms_ready"))
        except (OSError, AssertionError):
            return False

    until(is_ready, within_s=60, what="the next boot to serve JSON")
    with stack.parent() as parent:
        assert parent.request(stack.encrypt_message(b"x", "kept"))["error"] == "unknown_request"
        assert parent.request(stack.decrypt_message(stack.encrypted(b"x"), "kept"))["success"]
        assert parent.request(stack.encrypt_message(b"x", "kept"))["success"]
