"""The one-machine KMS: `python -m infra.local_kms --config FILE [--ready-file FILE]`.

KMS's JSON 1.1 protocol over TLS on loopback. It verifies SigV4, attestation documents and key policies, and fails
closed; its answers have the shapes of AWS's. Called by `infra.local` and tests, as a process of its own. May import:
the standard library, cryptography, mrgc.attest, mrgc.errors, infra. It is no part of production, where KMS is AWS's.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import signal
import socket
import socketserver
import ssl
import threading
import time
import uuid
from collections import Counter
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final, cast

from infra.durable_file import replace_file
from infra.kms_config import KmsConfig, load_config
from infra.kms_keys import KeyStore
from infra.kms_service import KmsService
from infra.kms_tls import server_context
from infra.kms_wire import KmsFault, Members, encode_answer
from infra.sigv4 import Request, authenticate
from mrgc.attest.chain import load_root
from mrgc.errors import ConfigError

#: Decrypt with a document is at most 262,144 bytes of blob, in base64, and little else.
MAX_BODY_BYTES: Final = 1 << 20
#: An idle or dripping connection is closed after this long.
IDLE_S: Final = 120.0
#: How long a stop waits at most for the accepting thread to notice.
STOP_POLL_S: Final = 0.05

_LENGTH: Final = re.compile(r"[0-9]{1,7}")
_TARGET_PREFIX: Final = "TrentService."
_CONTENT_TYPE: Final = "application/x-amz-json-1.1"

log = logging.getLogger("infra.local_kms")


class KmsServer(socketserver.ThreadingTCPServer):
    """Accepts TLS connections, one thread each; holds the service and the counts of calls."""

    allow_reuse_address = True
    daemon_threads = True  # a client's idle keep-alive connection must not hold up the end of the process
    request_queue_size = 128

    def __init__(self, config: KmsConfig) -> None:
        """Load keys and certificates, and listen.

        Raises:
            ConfigError: the root, the CA or a key file is missing or damaged.
            OSError: the address cannot be listened on.
        """
        config.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._tls = server_context(config.state, config.regions)
        self.config = config
        root = load_root(config.nsm_root.read_bytes())
        self.service = KmsService(KeyStore(config.state / "keys"), root, regions=config.regions)
        self._counts: Counter[str] = Counter()
        self._counts_lock = threading.Lock()
        super().__init__((config.host, config.port), KmsConnection)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept; the TLS handshake waits for the connection's own thread, so that no client can hold up others."""
        connection, address = super().get_request()
        return self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - socketserver's signature
        """Log a connection that broke; the default prints a traceback for every client that hangs up."""
        log.info("kms connection ended early", exc_info=log.isEnabledFor(logging.DEBUG))

    def count(self, name: str) -> None:
        """Count one call, or one refusal."""
        with self._counts_lock:
            self._counts[name] += 1

    def counts(self) -> dict[str, int]:
        """Return operation → calls since start, and `operation/error type` → how many of them ended so."""
        with self._counts_lock:
            return dict(self._counts)


class KmsConnection(BaseHTTPRequestHandler):
    """One keep-alive connection."""

    protocol_version = "HTTP/1.1"
    server_version = "mrgc-local-kms"
    sys_version = ""
    timeout = IDLE_S
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave in one write

    def setup(self) -> None:
        """Finish the TLS handshake before the first request."""
        super().setup()
        cast(ssl.SSLSocket, self.connection).do_handshake()

    def do_GET(self) -> None:
        """Answer `GET /stats`: counts since start, as one JSON object."""
        found = self.path == "/stats"
        body = json.dumps(cast(KmsServer, self.server).counts() if found else {}).encode()
        self._answer(200 if found else 404, body, content_type="application/json")

    def do_POST(self) -> None:
        """Answer one KMS call."""
        server = cast(KmsServer, self.server)
        operation = self.headers.get("x-amz-target", "").removeprefix(_TARGET_PREFIX)
        counted = operation if server.service.is_operation(operation) else "unknown"
        try:
            status, body = 200, self._call(operation)
        except KmsFault as fault:
            status, body = fault.status, fault.body()
            server.count(f"{counted}/{fault.kind}")
            log.info("kms refused %s: %s: %s", counted, fault.kind, fault.text)
        except (OSError, EOFError):
            raise  # the connection is gone; there is nobody to answer
        except Exception:
            # The loop that keeps the process alive: one call's failure must not look like a lost connection.
            log.exception("kms failed in %s", counted)
            status, body = 500, KmsFault("KMSInternalException", "internal failure").body()
        server.count(counted)
        self._answer(status, body, content_type=_CONTENT_TYPE)

    def _call(self, operation: str) -> bytes:
        server = cast(KmsServer, self.server)
        body = self._body()
        headers = {name.lower(): value for name, value in self.headers.items()}
        if len(headers) != len(self.headers):
            raise KmsFault("InvalidSignatureException", "a header occurs twice")
        request = Request(self.command, self.path, headers, body)
        caller = authenticate(request, principals=server.config.principals, now_s=time.time())
        if caller.region not in server.config.regions:
            raise KmsFault("InvalidSignatureException", "Credential should be scoped to a served region.")
        if not server.service.is_operation(operation):
            raise KmsFault("UnknownOperationException", "no such operation here")
        return encode_answer(server.service.call(operation, Members.parse(body), caller))

    def _body(self) -> bytes:
        length = self.headers.get("content-length", "")
        if _LENGTH.fullmatch(length) is None or int(length) > MAX_BODY_BYTES:
            self.close_connection = True  # where the next request would begin is unknown
            raise KmsFault("SerializationException", "Content-Length is missing or too large", status=413)
        body: bytes = self.rfile.read(int(length))
        if len(body) != int(length):
            raise EOFError
        return body

    def _answer(self, status: int, body: bytes, *, content_type: str) -> None:
        self.send_response(status)
        self.send_header("x-amzn-RequestId", str(uuid.uuid4()))
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the signature of http.server
        """Keep http.server's line per request out of the log: refusals have their own."""


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m infra.local_kms", description="KMS for one machine.")
    parser.add_argument("--config", type=Path, required=True, help="JSON file written by infra.kms_config")
    parser.add_argument("--ready-file", type=Path, help="written when the server listens: endpoint, port, ca, pid")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        server = KmsServer(load_config(arguments.config))
    except (ConfigError, OSError) as err:
        log.error("kms cannot start: %s", err)
        return 1
    with server:
        serving = threading.Thread(target=server.serve_forever, args=(STOP_POLL_S,), name="accept", daemon=True)
        serving.start()
        if arguments.ready_file is not None:
            _write_ready(arguments.ready_file, server)
        stop.wait()
        server.shutdown()
    return 0


def _write_ready(path: Path, server: KmsServer) -> None:
    host, port = cast(tuple[str, int], server.server_address)
    ready = {
        "endpoint": f"https://{host}:{port}",
        "host": host,
        "port": port,
        "ca": str(server.config.state / "ca.pem"),
        "pid": os.getpid(),
    }
    replace_file(path, json.dumps(ready).encode(), mode=0o644)


if __name__ == "__main__":
    raise SystemExit(main())
