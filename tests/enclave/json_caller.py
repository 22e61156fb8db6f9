"""The JSON protocol over one connection, for tests."""

from __future__ import annotations

import base64
import json
import socket
from pathlib import Path
from typing import Any, Self

from mrgc.wire import frames
from mrgc.wire.addresses import UnixAddress, connect


def send_json(sock: socket.socket, body: bytes) -> dict[str, Any]:
    """Send one body and read the answer."""
    sock.sendall(len(body).to_bytes(4, "big") + body)
    answer: dict[str, Any] = json.loads(frames.recv_body(sock, frames.recv_length(sock)))
    return answer


class JsonCaller:
    """A caller of the JSON protocol; it holds no token unless it says hello."""

    def __init__(self, path: Path) -> None:
        self.sock = connect(UnixAddress(path), timeout_s=20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def ask(self, **members: Any) -> dict[str, Any]:
        """Send one request and return its answer."""
        return send_json(self.sock, json.dumps(members).encode())

    def is_closed(self) -> bool:
        """Tell whether the enclave has ended this connection."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def hello(self, token: bytes) -> dict[str, Any]:
        """Say hello."""
        return self.ask(action="hello", token=base64.b64encode(token).decode())

    def decrypt(self, payload: bytes, key_arn: str, request_id: str = "r", *, tenant: str = "acme") -> dict[str, Any]:
        """Ask for a plaintext."""
        return self.ask(
            action="decrypt",
            encrypted_payload=base64.b64encode(payload).decode(),
            kms_key_arn=key_arn,
            tenant_id=tenant,
            request_id=request_id,
        )

    def encrypt(self, body: bytes, key_arn: str, request_id: str = "r") -> dict[str, Any]:
        """Ask for a sealed answer."""
        result = base64.b64encode(body).decode()
        return self.ask(action="encrypt", plaintext_result=result, kms_key_arn=key_arn, request_id=request_id)

    def health(self) -> dict[str, Any]:
        """Ask for health."""
        return self.ask(action="health", request_id="h")


def plaintext_of(answer: dict[str, Any]) -> bytes:
    """Return the plaintext of an answer that must be a success."""
    assert answer.keys() == {"plaintext", "success", "request_id"}, answer
    return base64.b64decode(answer["plaintext"], validate=True)


def sealed_of(answer: dict[str, Any]) -> bytes:
    """Return the sealed object of an answer that must be a success."""
    assert answer.keys() == {"encrypted_response", "success", "request_id"}, answer
    return base64.b64decode(answer["encrypted_response"], validate=True)


def error(code: str, request_id: str = "r") -> dict[str, Any]:
    """Return the answer that names a code."""
    return {"success": False, "error": code, "request_id": request_id}
