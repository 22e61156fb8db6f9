"""A small S3 on loopback: create-only PUT, GET, HEAD; it fails as told and remembers every object it ever took.

What it answers to If-None-Match follows Amazon S3 User Guide, "How to prevent object overwrites with conditional
writes": 412 when an object of that key exists, 409 when a conflicting write was under way.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import unquote, urlsplit

BUCKET: Final = "results"


@dataclass(frozen=True, slots=True)
class Fault:
    """What becomes of one request."""

    #: Answered with this status and code; 0 answers properly.
    status: int = 0
    code: str = ""
    #: The object is stored although the answer says otherwise.
    stores: bool = False
    #: How long the answer takes.
    delay_s: float = 0.0


#: Decides on one request: its method and how many of that method came before it since the rule was set.
Rule = Callable[[str, int], Fault | None]


class S3Server:
    """Serves one bucket from memory until closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[str, bytes] = {}
        #: Keys whose bytes were ever replaced.
        self.rewritten: set[str] = set()
        self._rule: Rule | None = None
        self._asked: dict[str, int] = {}
        #: Requests that met a fault.
        self.faults = 0
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.s3 = self
        self.port = int(self._server.server_address[1])
        self._closing = threading.Event()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def fail(self, rule: Rule | None) -> None:
        """Put every request before `rule` from now on; None ends it."""
        with self._lock:
            self._rule, self._asked = rule, {}

    def objects(self) -> dict[str, bytes]:
        """Every object by its key."""
        with self._lock:
            return dict(self._objects)

    def delete(self, key: str) -> None:
        """Remove an object, as its tenant may."""
        with self._lock:
            del self._objects[key]

    def close(self) -> None:
        """Stop serving."""
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def fault_of(self, method: str) -> Fault:
        """Return what the rule says of one request, its delay already spent."""
        with self._lock:
            nth = self._asked.get(method, 0)
            self._asked[method] = nth + 1
            fault = (self._rule(method, nth) if self._rule is not None else None) or Fault()
            self.faults += fault != Fault()
        self._closing.wait(fault.delay_s)
        return fault

    def put(self, key: str, body: bytes, *, create_only: bool) -> bool:
        """Store an object; False if one exists and only a new one may be stored."""
        with self._lock:
            if key in self._objects:
                if create_only:
                    return False
                self.rewritten.add(key)
            self._objects[key] = body
            return True

    def get(self, key: str) -> bytes | None:
        """Return an object."""
        with self._lock:
            return self._objects.get(key)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    s3: S3Server

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that were killed in the middle of a request."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if len(body) < int(self.headers["content-length"]):
            self.close_connection = True  # the writer died; nothing of its object is kept
            return
        fault = self.server.s3.fault_of("PUT")
        if fault.status and not fault.stores:
            self._refuse(fault.status, fault.code)
            return
        is_new = self.server.s3.put(self._key(), body, create_only=self.headers.get("if-none-match") == "*")
        if fault.status:
            self._refuse(fault.status, fault.code)
        elif is_new:
            self._answer(200, b"", body)
        else:
            self._refuse(412, "PreconditionFailed")

    def do_GET(self) -> None:
        fault = self.server.s3.fault_of(self.command)
        found = self.server.s3.get(self._key())
        if fault.status:
            self._refuse(fault.status, fault.code)
        elif found is None:
            self._refuse(404, "NoSuchKey")
        else:
            self._answer(200, found, found)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}/")

    def _refuse(self, status: int, code: str) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as told</Message></Error>".encode()
        self._answer(status, text, b"")

    def _answer(self, status: int, body: bytes, entity: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("ETag", f'"{hashlib.md5(entity, usedforsecurity=False).hexdigest()}"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """A request is not worth a line."""
