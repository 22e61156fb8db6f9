"""The engine's socket: accepts the intake, reads job batches, writes answers.

A unix socket file for the intake's group and nobody else; there is no other way in. One thread per connection reads;
answers are written by the pipeline's last stage, so they may come in any order.

May import: the standard library, structlog, mrgc.errors, mrgc.wire, worker.engine, worker.engine_protocol. Called by
worker.engine.__main__.
"""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from mrgc.errors import FormatError, MrgcError, UnsupportedError
from mrgc.wire import frames
from mrgc.wire.addresses import accept
from worker import engine_protocol
from worker.engine.jobs import Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mrgc.wire.frames import Frame
    from mrgc.wire.strict_cbor import Buffer
    from worker.engine.pipeline import Pipeline
    from worker.engine_protocol import Ready, Served

SOCKET_MODE: Final = 0o660  #: The engine's user and the group that it shares with the intake's.
BACKLOG: Final = 16
MAX_CONNECTIONS: Final = 16  #: An intake needs two, one for batches and one for health.
#: An intake that takes no answers for so long is cut off; its jobs come back from the queue.
SEND_S: Final = 30
ACCEPT_PAUSE_S: Final = 0.1
_TIMEVAL: Final = struct.Struct("@ll")


class _Connection:
    """One accepted socket; written to by several threads."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._lock = threading.Lock()
        # A timeout for writes only: an intake may be silent for as long as it likes.
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(SEND_S, 0))

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Write one frame; on failure end the connection, whose reader then notices."""
        with self._lock:
            try:
                frames.send(self.sock, buffers)
            except OSError as error:
                structlog.get_logger().warning("answer could not be sent", exc_info=error)
                with suppress(OSError):
                    self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._lock:
            self.sock.close()


class Server:
    """Serves the intake.

    Args:
        listener: listening unix socket; closed by `stop`.
        pipeline: takes the batches.
        ready: describes the engine to a new connection, at that moment.
    """

    def __init__(self, listener: socket.socket, pipeline: Pipeline, ready: Callable[[], Ready]) -> None:
        self._listener = listener
        self._pipeline = pipeline
        self._ready = ready
        self._lock = threading.Lock()
        self._connections: dict[_Connection, threading.Thread] = {}
        self._stopping = threading.Event()
        self._acceptor = threading.Thread(target=self._accept, name="accept", daemon=True)

    def start(self) -> None:
        """Start accepting."""
        self._acceptor.start()

    def stop(self) -> None:
        """Accept nobody and read no further batch; what was read stays in the pipeline and can be answered."""
        self._stopping.set()
        # Wakes the accept, which a close alone would not.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        for connection, reader in self._snapshot():
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RD)
            reader.join()

    def close(self) -> None:
        """End the connections, once the pipeline is drained."""
        for connection, _ in self._snapshot():
            connection.close()

    def _snapshot(self) -> list[tuple[_Connection, threading.Thread]]:
        with self._lock:
            return list(self._connections.items())

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                sock = accept(self._listener)
            except OSError:
                # The listener was shut down, or this process is out of descriptors until some connection ends.
                self._stopping.wait(ACCEPT_PAUSE_S)
                continue
            connection = _Connection(sock)
            reader = threading.Thread(target=self._serve, args=(connection,), name="reader", daemon=True)
            with self._lock:
                is_full = len(self._connections) >= MAX_CONNECTIONS
                if not is_full:
                    self._connections[connection] = reader
            if is_full:
                connection.close()
            else:
                reader.start()

    def _serve(self, connection: _Connection) -> None:
        try:
            connection.send(engine_protocol.ready_message(self._ready()))
            while not self._stopping.is_set():
                self._take(connection, frames.recv(connection.sock))
        except FormatError as error:
            structlog.get_logger().warning("intake broke the protocol", exc_info=error)
        except OSError:
            pass
        finally:
            # While stopping, answers are still to be written.
            if not self._stopping.is_set():
                with self._lock:
                    del self._connections[connection]
                connection.close()

    def _take(self, connection: _Connection, frame: Frame) -> None:
        try:
            if frame.op == engine_protocol.HEALTH:
                connection.send(engine_protocol.health_response(frame.id, self._pipeline.health()))
            elif frame.op == engine_protocol.RUN:
                run = engine_protocol.parse_run(frame)
                self._pipeline.submit(Batch(run.jobs, partial(_reply, connection, run.id), exclusive=run.exclusive))
            else:
                raise UnsupportedError("no such operation")
        except FormatError as error:
            connection.send(engine_protocol.error_response(frame.op, frame.id, error))
            raise


def _reply(connection: _Connection, run_id: int, outcomes: list[Served | MrgcError]) -> None:
    connection.send(engine_protocol.run_response(run_id, outcomes))
