"""Bytes between botocore and KMS: TLS that ends inside the enclave, over whatever stream the dialler opens.

botocore signs, retries and parses; this module takes its place on the wire, through the documented `before-send`
event. Stock botocore neither fits (there is no IP network in an enclave) nor suffices: it reads an answer that was cut
short as an empty success, and whoever moves our bytes can cut them at will. So here an answer counts only if it is
whole, and a call ends at its deadline however slowly the peer drips.

Called by `enclave.kms_handler`. May import: the standard library, botocore.
"""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, cast
from urllib.parse import urlsplit

from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import (
    BotoCoreError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ReadTimeoutError,
)

#: Opens a stream to a KMS host name within a number of seconds. The composition root decides over what.
Dial = Callable[[str, float], socket.socket]

MAX_ANSWER_BYTES: Final = 64 << 10  #: A Decrypt answer is below 3 KiB; read only after Content-Length proves it fits.
CONNECT_TIMEOUT_S: Final = 2.0
READ_TIMEOUT_S: Final = 3.0  #: Of one read; KMS answers in milliseconds.
_MAX_IDLE: Final = 16  #: Per host; `enclave.kms_calls` never has more in flight.


class ServerIdentityError(BotoCoreError):
    """Raised when the peer's certificate is not KMS's own; not a ConnectionError, so botocore does not retry it."""

    fmt = "the peer is not the key management service"


class DeadlinePassed(BotoCoreError):
    """Raised when a call, its retries included, is out of time; not retried."""

    fmt = "the call to the key management service is out of time"


class KmsTransport:
    """Moves the requests of a botocore client over connections of its own.

    Args:
        dial: opens a stream towards a host.
        ca_file: PEM roots that may vouch for KMS.
    """

    def __init__(self, dial: Dial, ca_file: str) -> None:
        self._dial = dial
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._tls.load_verify_locations(cafile=ca_file)
        self._lock = threading.Lock()
        self._idle: dict[str, list[_Connection]] = {}
        self._call = threading.local()

    @contextmanager
    def deadline(self, limit_s: float) -> Iterator[None]:
        """Bound everything that this thread sends inside the block, retries included, to `limit_s` seconds."""
        self._call.deadline_s = time.monotonic() + limit_s
        try:
            yield
        finally:
            del self._call.deadline_s

    def sender(self, host: str) -> Callable[..., AWSResponse]:
        """Return the `before-send` handler of a client whose only endpoint is `host`."""

        def send(request: AWSPreparedRequest, **_: object) -> AWSResponse:
            url = urlsplit(request.url)
            if url.scheme != "https" or url.netloc != host:
                raise ServerIdentityError
            remaining_s = self._call.deadline_s - time.monotonic()
            if remaining_s <= 0:
                raise DeadlinePassed
            return self._exchange(request, host, remaining_s)

        return send

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def _exchange(self, request: AWSPreparedRequest, host: str, limit_s: float) -> AWSResponse:
        connection = self._take(host)
        # A timeout of the socket starts anew with every byte; only a watchdog ends a peer that drips.
        watchdog = threading.Timer(limit_s, connection.cut)
        watchdog.start()
        try:
            response = connection.exchange(request)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise _botocore_error(error, request) from error
        finally:
            watchdog.cancel()
        self._give_back(connection)
        return response

    def _take(self, host: str) -> _Connection:
        with self._lock:
            idle = self._idle.setdefault(host, [])
            while idle:
                connection = idle.pop()  # Last in, first out: the youngest is the least likely to be dead.
                if connection.is_quiet():
                    return connection
                connection.close()
        return _Connection(host, self._dial, self._tls)

    def _give_back(self, connection: _Connection) -> None:
        with self._lock:
            idle = self._idle.setdefault(connection.host, [])
            if connection.is_quiet() and len(idle) < _MAX_IDLE:
                idle.append(connection)
                return
        connection.close()


class _DialFailed(OSError):
    """Wraps what went wrong before the handshake, which botocore tells apart from what went wrong after."""

    def __init__(self, cause: OSError) -> None:
        super().__init__()
        self.cause = cause


class _Connection(http.client.HTTPSConnection):
    """One TLS connection to `host`, opened when first used."""

    def __init__(self, host: str, dial: Dial, tls: ssl.SSLContext) -> None:
        super().__init__(host, timeout=READ_TIMEOUT_S, context=tls)
        self._open_stream = dial
        self._tls = tls
        self._is_cut = False

    def connect(self) -> None:
        """Dial, then shake hands; certificate and host name are checked here, inside the enclave."""
        try:
            stream = self._open_stream(self.host, CONNECT_TIMEOUT_S)
        except OSError as error:
            raise _DialFailed(error) from error
        stream.settimeout(READ_TIMEOUT_S)
        # The handshake comes after the socket is in reach of the watchdog. A truncated stream must not look like a
        # finished one, hence no suppressed ragged ends.
        self.sock = self._tls.wrap_socket(
            stream, server_hostname=self.host, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
        if self._is_cut:
            raise ConnectionError("cut while dialling")
        self.sock.do_handshake()

    def exchange(self, request: AWSPreparedRequest) -> AWSResponse:
        """Send one request and read its whole answer."""
        target = urlsplit(request.url)
        path = f"{target.path or '/'}{'?' + target.query if target.query else ''}"
        self.request(request.method, path, body=cast("bytes", request.body), headers=dict(request.headers.items()))
        with self.getresponse() as response:
            body = _whole_body(response)
        headers: Any = response.headers
        return AWSResponse(request.url, response.status, headers, _Body(body))

    def cut(self) -> None:
        """End the connection under a thread that waits on it."""
        self._is_cut = True
        sock = self.sock
        if sock is not None:
            # The plain socket's method: SSLSocket's own would take the TLS state from under the reading thread, which
            # may also have closed the socket a moment ago.
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def is_quiet(self) -> bool:
        """Tell whether the peer has neither closed nor sent anything unasked: fit for another request."""
        if self.sock is None or self._is_cut:
            return False
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)


class _Body:
    """The part of urllib3's response that AWSResponse reads."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self._body


def _whole_body(response: http.client.HTTPResponse) -> bytes:
    declared = response.getheader("Content-Length", "")
    if response.chunked:
        raise http.client.HTTPException("answer declares no length")
    # A header block cut in its middle parses as a shorter one, so a missing length is a cut answer as well.
    if not (declared.isascii() and declared.isdigit() and len(declared) <= 6 and int(declared) <= MAX_ANSWER_BYTES):
        raise http.client.HTTPException("answer has no acceptable length")
    body = response.read(int(declared))
    if len(body) != int(declared):
        raise http.client.HTTPException("answer was cut short")
    return body


def _botocore_error(error: OSError | http.client.HTTPException, request: AWSPreparedRequest) -> BotoCoreError:
    # botocore retries its own connection errors only; a bare OSError would end the call at the first attempt.
    if isinstance(error, _DialFailed):
        if isinstance(error.cause, TimeoutError):
            return ConnectTimeoutError(endpoint_url=request.url, error=error.cause)
        return EndpointConnectionError(endpoint_url=request.url, error=error.cause)
    if isinstance(error, ssl.SSLCertVerificationError):
        return ServerIdentityError()
    if isinstance(error, TimeoutError):
        return ReadTimeoutError(endpoint_url=request.url, error=error)
    return ConnectionClosedError(endpoint_url=request.url, error=error, request=request)
