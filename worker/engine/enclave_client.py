"""The engine's connection to the enclave: open and seal, one request at a time (docs/spec.md §6).

Each of the two stages that need the enclave owns one client. A client reconnects by itself: within one call at most
once, because a connection may have gone stale since the last one; between calls with growing, jittered pauses, in
which calls fail at once. `tend` keeps the connection up while there are no jobs.

The one place where socket errors become ours. May import: the standard library, structlog, mrgc.errors, mrgc.wire,
worker.backoff, worker.token_file. Called by worker.engine.opening and worker.engine.sealing.
"""

from __future__ import annotations

import select
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from mrgc.errors import EnclaveProtocolError, EnclaveUnreachable, FormatError, MrgcError
from mrgc.wire import enclave_protocol, frames
from mrgc.wire.addresses import connect
from mrgc.wire.enclave_protocol import Hello, Op
from worker.backoff import Backoff
from worker.token_file import read_token

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mrgc.wire.addresses import Address
    from mrgc.wire.enclave_protocol import Opened, SealRequest
    from mrgc.wire.frames import Frame
    from mrgc.wire.strict_cbor import Buffer

T = TypeVar("T")

CONNECT_S: Final = 5.0  #: Connecting, health and hello take milliseconds.
#: An open may wait for KMS calls of many keys; the enclave's own deadlines end it long before.
REQUEST_S: Final = 60.0
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 2.0


class EnclaveClient:
    """One connection. Used by one thread; `boot` and `reason` may be read by others.

    Args:
        address: where the enclave listens.
        token_file: written by the enclave agent at every boot of the enclave.
        clock: monotonic seconds.
    """

    def __init__(self, address: Address, token_file: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._address = address
        self._token_file = token_file
        self._clock = clock
        self._backoff = Backoff(base_s=FIRST_PAUSE_S, cap_s=LONGEST_PAUSE_S)
        self._retry_at_s = 0.0
        self._sock: socket.socket | None = None
        self._id = 0
        #: Boot id of the enclave that is connected; empty while none is.
        self.boot = ""
        #: Why there is no connection; empty while there is one.
        self.reason = "not connected yet"

    def open_batch(self, jobs: Sequence[Buffer]) -> list[Opened | MrgcError]:
        """Open sealed jobs, 1 to 1,024; one outcome per job in order. Plaintexts are views into one bytearray.

        Raises:
            EnclaveUnreachable: no connection, also not a fresh one.
            MrgcError: the enclave answered the whole request with a code.
        """
        answer = self._ask(lambda frame_id: enclave_protocol.open_batch_request(frame_id, jobs))
        return self._checked(lambda: enclave_protocol.parse_opened(answer, len(jobs)))

    def seal_batch(self, results: Sequence[SealRequest]) -> list[memoryview | MrgcError]:
        """Seal results, 1 to 1,024; one outcome per result in order.

        Raises:
            EnclaveUnreachable: no connection, also not a fresh one.
            MrgcError: the enclave answered the whole request with a code.
        """
        answer = self._ask(lambda frame_id: enclave_protocol.seal_batch_request(frame_id, results))
        return self._checked(lambda: enclave_protocol.parse_sealed(answer, len(results)))

    def tend(self) -> None:
        """Notice a connection that the peer closed, and connect if there is none and the pause is over."""
        if self._sock is not None and self._is_closed(self._sock):
            self._drop("enclave closed the connection")
        if self._sock is None:
            with suppress(EnclaveUnreachable):
                self._connected()

    def pause_s(self) -> float:
        """Seconds until the next attempt to connect is allowed; 0 when one is, or none is needed."""
        return 0.0 if self._sock is not None else max(0.0, self._retry_at_s - self._clock())

    def close(self) -> None:
        """End the connection."""
        self._drop("closed")

    def _ask(self, build: Callable[[int], list[Buffer]]) -> Frame:
        was_connected = self._sock is not None
        sock = self._connected()
        try:
            return self._exchange(sock, build)
        except EnclaveUnreachable as error:
            # Opening and sealing again are harmless, so a request that died with an old connection is repeated, once.
            # One that timed out is not: an enclave that hangs would hold its jobs twice as long.
            if not was_connected or isinstance(error.__cause__, TimeoutError):
                raise
            return self._exchange(self._connected(), build)

    def _exchange(self, sock: socket.socket, build: Callable[[int], list[Buffer]]) -> Frame:
        self._id += 1
        request = build(self._id)
        try:
            frames.send(sock, request)
            frame = frames.recv(sock)
        except (OSError, FormatError) as error:
            self._drop("enclave broke the connection")
            raise EnclaveUnreachable("connection to the enclave broke") from error
        # A connection that cannot be served at all is told so in a frame that answers no request of ours.
        if frame.id != self._id and "code" not in frame.header:
            self._drop("enclave answered another request")
            raise EnclaveProtocolError("enclave answered another request")
        return frame

    def _checked(self, parse: Callable[[], T]) -> T:
        try:
            return parse()
        except EnclaveProtocolError:
            self._drop("enclave broke the protocol")
            raise

    def _connected(self) -> socket.socket:
        if self._sock is not None:
            return self._sock
        if self._clock() < self._retry_at_s:
            raise EnclaveUnreachable(self.reason)
        try:
            sock = self._sock = connect(self._address, timeout_s=CONNECT_S)
            self.boot = self._greet(sock)
            sock.settimeout(REQUEST_S)
        except (OSError, MrgcError) as error:
            self._drop(str(error) if isinstance(error, MrgcError) else "enclave does not listen")
            self._retry_at_s = self._clock() + self._backoff.next_s()
            raise EnclaveUnreachable(self.reason) from error
        self._backoff.reset()
        self.reason = ""
        structlog.get_logger().info("enclave connected", boot=self.boot)
        return sock

    def _greet(self, sock: socket.socket) -> str:
        """Say hello with the token of this boot, and return its id.

        The first hello of a boot belongs to the agent, who writes the token file before it. So an enclave that has
        had its hello has its token in the file, and one that has not is left alone.
        """
        health = enclave_protocol.parse_health(
            self._exchange(sock, lambda frame_id: enclave_protocol.plain_request(frame_id, Op.HEALTH))
        )
        if not health.hello:
            raise EnclaveUnreachable("enclave waits for its agent")
        token = read_token(self._token_file)
        if token is None:
            raise EnclaveUnreachable("no enclave token")
        hello = Hello(token, json=False)
        frame = self._exchange(sock, lambda frame_id: enclave_protocol.hello_request(frame_id, hello))
        enclave_protocol.ensure_success(frame, Op.HELLO)
        return health.boot

    def _drop(self, reason: str) -> None:
        if self._sock is not None:
            self._sock.close()
            if self.boot:
                structlog.get_logger().warning("enclave lost", boot=self.boot, reason=reason)
        self._sock, self.boot, self.reason = None, "", reason

    @staticmethod
    def _is_closed(sock: socket.socket) -> bool:
        # No answer is outstanding, so anything to read is the end of the connection, or a breach of the protocol.
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(0))
