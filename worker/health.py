"""A small HTTP server for /healthz, /readyz and /metrics. It shows counts and codes, never a job.

May import: the standard library, worker.settings. Called by the intake and the enclave agent.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple

from worker.settings import HttpAddress

#: Longest silence of a client; probes take milliseconds.
CLIENT_TIMEOUT_S: Final = 5.0


class Page(NamedTuple):
    """One answer."""

    status: HTTPStatus
    content_type: str
    body: bytes


def health_page() -> Page:
    """Answer /healthz: the process runs."""
    return _json_page(HTTPStatus.OK, {"status": "healthy"})


def readiness_page(reasons: Sequence[str]) -> Page:
    """Answer /readyz.

    Args:
        reasons: codes of what keeps the process from serving; none when it serves.
    """
    status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
    return _json_page(status, {"ready": not reasons, "reasons": list(reasons)})


class HttpServer:
    """Serves pages by path until it is closed.

    Args:
        address: where; port 0 takes any free one.
        pages: by path. A page is made for every request; it must not block.

    Raises:
        OSError: the address is taken.
    """

    def __init__(self, address: HttpAddress, pages: Mapping[str, Callable[[], Page]]) -> None:
        self._server = _Server((address.host, address.port), _handler(pages))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="http", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port in use."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away: the default prints a traceback with the peer's bytes."""


def _handler(pages: Mapping[str, Callable[[], Page]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = CLIENT_TIMEOUT_S

        def do_GET(self) -> None:
            make = pages.get(self.path)
            page = make() if make is not None else _json_page(HTTPStatus.NOT_FOUND, {"status": "not found"})
            self.send_response(page.status)
            self.send_header("Content-Type", page.content_type)
            self.send_header("Content-Length", str(len(page.body)))
            self.end_headers()
            self.wfile.write(page.body)

        def log_message(self, *_args: object) -> None:
            """Probes come every second and are not worth a line."""

    return Handler


def _json_page(status: HTTPStatus, content: Mapping[str, object]) -> Page:
    return Page(status, "application/json", json.dumps(content).encode() + b"\n")
