"""One connection to the enclave: frames in, frames out, until either side ends it.

A thread per connection runs this. Deadlines are kept by `enclave.server`, which cuts a connection that is overdue: a
socket's own timeout starts anew with every byte, and a peer that drips bytes would never meet it.

Called by `enclave.server`. May import: the standard library, enclave, mrgc.errors, mrgc.wire.
"""

from __future__ import annotations

import logging
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from enclave.counters import Counters
from enclave.frame_budget import FREE_BYTES, FrameBudget
from enclave.key_cache import wipe
from enclave.operations import Operations, Peer
from enclave.socket_errors import socket_error
from mrgc.errors import EnclaveBusy, FormatError, InternalError, MrgcError
from mrgc.wire import frames
from mrgc.wire.enclave_protocol import error_response
from mrgc.wire.frames import Frame
from mrgc.wire.strict_cbor import Buffer

logger = logging.getLogger(__name__)

#: Longest frame of a peer without the token: health and hello take below 200 bytes, and it may not fill the memory.
MAX_STRANGER_FRAME_BYTES: Final = FREE_BYTES
_MAX_OP_CHARS: Final = 32  #: No op is longer, and an answer repeats it.
_JSON_FIRST_BYTE: Final = 0x7B  #: docs/spec.md §6: "{" opens a frame of the JSON protocol.
_JSON_REFUSAL: Final = b'{"success": false, "error": "unsupported", "request_id": ""}'


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a peer may keep the enclave waiting."""

    frame_s: float = 30.0  #: For the rest of a frame once its first byte is there, and for taking an answer.
    stranger_s: float = 30.0  #: For a peer without the token to ask something; the others may be silent for ever.


class Connection:
    """Serves one accepted socket.

    Args:
        sock: blocking, without a timeout.
        operations: what may be asked for.
        budget: memory of all connections.
        counters: gets frames_bytes.
        limits: deadlines.
    """

    def __init__(
        self, sock: socket.socket, operations: Operations, *, budget: FrameBudget, counters: Counters, limits: Limits
    ) -> None:
        self._sock = sock
        self._operations = operations
        self._budget = budget
        self._counters = counters
        self._limits = limits
        self._deadline_s: float | None = None
        self.peer = Peer()

    def serve(self) -> None:
        """Answer requests until the peer leaves, breaks the protocol or is cut."""
        # A peer that breaks framing gets no answer: nothing says where its next frame would begin.
        with suppress(OSError, FormatError):
            while True:
                length = self._next_length()
                with self._budget.admitted(length):
                    self._exchange(length)

    def is_overdue(self, now_s: float) -> bool:
        """Tell whether the peer has kept the enclave waiting beyond a limit."""
        deadline_s = self._deadline_s
        return deadline_s is not None and now_s >= deadline_s

    def cut(self) -> None:
        """End the connection under the thread that serves it."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def refuse(self) -> None:
        """Tell the peer of a connection that cannot be served to come back later."""
        with suppress(OSError):
            frames.send(self._sock, error_response("", 0, EnclaveBusy()))
        self.close()

    def close(self) -> None:
        """Release the socket."""
        self._sock.close()

    def _next_length(self) -> int:
        self._allow(None if self.peer.has_token else self._limits.stranger_s)
        # Waits for the first byte without taking it: from there on the frame's own deadline runs.
        self._sock.recv(1, socket.MSG_PEEK)
        self._allow(self._limits.frame_s)
        most = frames.MAX_FRAME_BYTES if self.peer.has_token else MAX_STRANGER_FRAME_BYTES
        length = frames.recv_length(self._sock, max_bytes=most)
        self._allow(None)  # Waiting for memory is the enclave's delay, not the peer's.
        return length

    def _exchange(self, length: int) -> None:
        body = bytearray(length)
        answer: list[Buffer] = []
        try:
            self._allow(self._limits.frame_s)
            frames.recv_exactly(self._sock, memoryview(body))
            self._allow(None)
            answer = self._answer(body)
            self._allow(self._limits.frame_s)
            frames.send(self._sock, answer)
        finally:
            # Plaintexts: bodies to be sealed came in, opened jobs went out.
            for buffer in (body, *answer):
                if isinstance(buffer, bytearray):
                    wipe(buffer)
        self._counters.add(frames_bytes=length + sum(map(len, answer)))

    def _answer(self, body: bytearray) -> list[Buffer]:
        if body[0] == _JSON_FIRST_BYTE:
            return [len(_JSON_REFUSAL).to_bytes(frames.LENGTH_BYTES, "big") + _JSON_REFUSAL]
        frame = frames.decode(body)
        if len(frame.op) > _MAX_OP_CHARS:
            raise FormatError("op is longer than any")
        return self._perform(frame)

    def _perform(self, frame: Frame) -> list[Buffer]:
        try:
            return self._operations.perform(frame, self.peer)
        except MrgcError as error:
            return error_response(frame.op, frame.id, socket_error(error))
        except Exception as error:  # noqa: BLE001  a defect in one request must not take the enclave from the others
            # The class only: an exception's text may quote what it failed on.
            logger.error("operation failed: %s", type(error).__name__)
            return error_response(frame.op, frame.id, InternalError())

    def _allow(self, limit_s: float | None) -> None:
        self._deadline_s = None if limit_s is None else time.monotonic() + limit_s
