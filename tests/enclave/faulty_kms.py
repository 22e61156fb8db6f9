"""A TLS server that answers KMS requests exactly as a test scripts it: cut, slow, lying."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from infra import cms_encrypt
from infra.kms_tls import server_context
from mrgc.attest.cose import parse_sign1
from mrgc.attest.document import Kind, parse_document

#: Writes the answer to one request; returns whether the connection lives on.
Reply = Callable[[ssl.SSLSocket], bool]


@dataclass(frozen=True)
class Request:
    """One received request."""

    head: str
    body: dict[str, Any]

    def header(self, name: str) -> str:
        """Return a header's value."""
        lines = (line.partition(": ") for line in self.head.split("\r\n")[1:])
        return next(value for key, _, value in lines if key.lower() == name.lower())


class FaultyKms:
    """Answers request after request with `script`, the last of which repeats."""

    def __init__(self, directory: Path, regions: tuple[str, ...] = ("eu-west-1",)) -> None:
        self._tls = server_context(directory, regions)
        self.ca = directory / "ca.pem"
        self.script: list[Reply] = []
        self.requests: list[Request] = []
        self.dials: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._released = threading.Event()
        self._threads[0].start()

    def dial(self, host: str, timeout_s: float) -> socket.socket:
        """Reach this server whatever the host."""
        self.dials.append(host)
        return socket.create_connection(self._listener.getsockname(), timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End every connection."""
        self._released.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        for thread in self._threads:
            thread.join(10)

    def forget(self) -> None:
        """Drop the script, and what was seen."""
        self.script, self.requests, self.dials = [], [], []

    def hang_up(self) -> None:
        """End the connections that are open now."""
        for sock in self._open:
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def hang(self, _sock: ssl.SSLSocket) -> bool:
        """Never answer."""
        self._released.wait(60)
        return False

    def honest(self, secret: bytes, members: dict[str, Any]) -> Reply:
        """Answer as KMS does, the secret encrypted for the document in the request.

        Args:
            secret: what CiphertextForRecipient holds.
            members: of the answer, in place of that one too; None leaves one out.
        """

        def reply(sock: ssl.SSLSocket) -> bool:
            document = base64.b64decode(self.requests[-1].body["Recipient"]["AttestationDocument"])
            fields = parse_document(parse_sign1(document).payload, kind=Kind.ENCLAVE)
            key = load_der_public_key(fields.public_key or b"")
            assert isinstance(key, RSAPublicKey)
            sealed = base64.b64encode(cms_encrypt.encrypt(secret, key)).decode()
            told = {"CiphertextForRecipient": sealed} | members
            body = json.dumps({name: value for name, value in told.items() if value is not None}).encode()
            return answer(body)(sock)

        return reply

    def drip(self, sock: ssl.SSLSocket) -> bool:
        """Answer a byte every 50 ms, for ever."""
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
        with suppress(OSError):
            while not self._released.wait(0.05):
                sock.sendall(b"x")
        return False

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(sock,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, plain: socket.socket) -> None:
        self._open.append(plain)
        with suppress(OSError, ValueError), self._tls.wrap_socket(plain, server_side=True) as sock:
            self._open.append(sock)
            while self._answer(sock):
                pass

    def _answer(self, sock: ssl.SSLSocket) -> bool:
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._more(sock)
        head, _, body = received.partition(b"\r\n\r\n")
        request = Request(head.decode(), {})
        while len(body) < int(request.header("Content-Length")):
            body += self._more(sock)
        self.requests.append(Request(request.head, json.loads(body)))
        reply = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return reply(sock)

    @staticmethod
    def _more(sock: ssl.SSLSocket) -> bytes:
        data = sock.recv(65_536)
        if not data:
            raise ConnectionError
        return data


def answer(body: bytes, *, status: int = 200, length: int | str | None = None) -> Reply:
    """Answer with a body, under a Content-Length of its own or another."""
    declared = len(body) if length is None else length
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/x-amz-json-1.1\r\nContent-Length: {declared}\r\n\r\n"

    def reply(sock: ssl.SSLSocket) -> bool:
        sock.sendall(head.encode() + body)
        return declared == len(body)

    return reply


def raw(data: bytes) -> Reply:
    """Send these bytes and close."""

    def reply(sock: ssl.SSLSocket) -> bool:
        sock.sendall(data)
        return False

    return reply


def cleanly_cut(data: bytes) -> Reply:
    """Send these bytes and close as TLS wants it, so that the end looks meant."""

    def reply(sock: ssl.SSLSocket) -> bool:
        sock.sendall(data)
        sock.unwrap()
        return False

    return reply


def refusal(code: str, *, status: int = 400) -> Reply:
    """Answer with an error of KMS."""
    return answer(json.dumps({"__type": code, "message": "canary text"}).encode(), status=status)
