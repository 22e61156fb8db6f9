"""One connection to the enclave: frames in, frames out, until either side ends it.

A thread per connection runs this. Deadlines are kept by `enclave.server`, which cuts a connection that is overdue: a
socket's own timeout starts anew with every byte, and a peer that drips bytes would never meet it.

Called by `enclave.server`. May import: the standard library, enclave, mrgc.errors, mrgc.wire.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from enclave import json_requests
from enclave.access import Peer
from enclave.counters import Counters
from enclave.frame_budget import FrameBudget
from enclave.json_answers import error_answer
from enclave.key_cache import wipe
from enclave.operations import Operations
from enclave.pending import LIFETIME_S
from enclave.socket_errors import socket_error
from mrgc.errors import EnclaveBusy, FormatError, InternalError, MrgcError, TooLargeError
from mrgc.wire import frames
from mrgc.wire.enclave_protocol import error_response
from mrgc.wire.strict_cbor import Buffer

logger = logging.getLogger(__name__)

#: Longest frame of a peer without the token: health and hello take below 200 bytes, and it may not fill the memory.
MAX_STRANGER_FRAME_BYTES: Final = 4 << 10
#: What one byte of a CBOR header may become: an empty map is one byte, an object of 64 and a place of 8 in its list.
_HEADER_COPIES: Final = 80
#: Longest request of the JSON protocol, which carries one job: 12 MiB in base64. A longer one is refused unread.
MAX_JSON_FRAME_BYTES: Final = 16 << 20
_JSON_COPIES: Final = 4  #: The request, its payload, what was opened or sealed, and the answer.
_JSON_FIRST_BYTE: Final = b"{"  #: docs/spec.md §6: 0x7B opens a frame of the JSON protocol.
_MAX_OP_CHARS: Final = 32  #: No op is longer, and an answer repeats it.
_DISCARD_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a peer may keep the enclave waiting, and how much it is sent at once."""

    frame_s: float = 30.0  #: For the rest of a frame once its first byte is there, and for taking an answer.
    stranger_s: float = 30.0  #: For a peer without the token to ask something; the others may be silent for ever.
    json_s: float = LIFETIME_S  #: The same where strangers are served JSON: as long as an encrypt may be awaited.
    write_bytes: int = frames.SLICE_BYTES  #: Longest single write; QEMU's vsock device never takes one over 64 KiB.


class Budgets(NamedTuple):
    """Memory for frames, of all and the share of it that peers without the token may have; and for their headers."""

    all: FrameBudget
    strangers: FrameBudget
    headers: FrameBudget


class Connection:
    """Serves one accepted socket.

    Args:
        sock: blocking, without a timeout.
        operations: what may be asked for.
        budgets: memory of all connections.
        counters: gets frames_bytes.
        limits: deadlines.
    """

    def __init__(
        self, sock: socket.socket, operations: Operations, *, budgets: Budgets, counters: Counters, limits: Limits
    ) -> None:
        self._sock = sock
        self._operations = operations
        self._budgets = budgets
        self._counters = counters
        self._limits = limits
        self._deadline_s: float | None = None
        self.peer = Peer()

    def serve(self) -> None:
        """Answer requests until the peer leaves, breaks the protocol or is cut."""
        # A peer that breaks framing gets no answer: nothing says where its next frame would begin.
        with suppress(OSError, FormatError):
            while True:
                length, is_json = self._next_frame()
                if is_json and length > MAX_JSON_FRAME_BYTES:
                    self._discard(length)
                    continue
                budget = self._budgets.all if self.peer.has_token else self._budgets.strangers
                with budget.admitted(length, copies=_JSON_COPIES if is_json else 2):
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
            self._send(error_response("", 0, EnclaveBusy()))
        self.close()

    def close(self) -> None:
        """Release the socket."""
        self._sock.close()

    def _next_frame(self) -> tuple[int, bool]:
        """Wait for a frame; return its length, and whether it is one of the JSON protocol."""
        self._allow(self._idle_limit_s())
        # Waits for the first byte without taking it: from there on the frame's own deadline runs.
        self._sock.recv(1, socket.MSG_PEEK)
        self._allow(self._limits.frame_s)
        may_be_long = self.peer.has_token or self._operations.serves_json(self.peer)
        most = frames.MAX_FRAME_BYTES if may_be_long else MAX_STRANGER_FRAME_BYTES
        length = frames.recv_length(self._sock, max_bytes=most)
        is_json = self._sock.recv(1, socket.MSG_PEEK) == _JSON_FIRST_BYTE
        self._allow(None)  # Waiting for memory is the enclave's delay, not the peer's.
        if length > MAX_STRANGER_FRAME_BYTES and not (self.peer.has_token or is_json):
            raise FormatError("frame of a stranger is outside its limits")
        return length, is_json

    def _idle_limit_s(self) -> float | None:
        if self.peer.has_token:
            return None
        return self._limits.json_s if self._operations.serves_json(self.peer) else self._limits.stranger_s

    def _discard(self, length: int) -> None:
        """Read a request that is too long without keeping it, and say so."""
        self._allow(self._limits.frame_s)
        piece = bytearray(_DISCARD_BYTES)
        for start in range(0, length, _DISCARD_BYTES):
            frames.recv_exactly(self._sock, memoryview(piece)[: length - start])
        self._send([error_answer("", TooLargeError())])
        self._allow(None)
        wipe(piece)

    def _exchange(self, length: int) -> None:
        body = bytearray(length)
        answer: list[Buffer] = []
        try:
            self._allow(self._limits.frame_s)
            frames.recv_exactly(self._sock, memoryview(body))
            self._allow(None)
            answer = self._answer(body)
            self._allow(self._limits.frame_s)
            self._send(answer)
        finally:
            # Plaintexts: bodies to be sealed came in, opened jobs went out.
            for buffer in (body, *answer):
                if isinstance(buffer, bytearray):
                    wipe(buffer)
        self._counters.add(frames_bytes=length + sum(map(len, answer)))

    def _answer(self, body: bytearray) -> list[Buffer]:
        if body.startswith(_JSON_FIRST_BYTE):
            request = json_requests.read(body)
            return self._guarded(
                partial(self._operations.perform_json, request, self.peer),
                lambda error: [error_answer(request.request_id, error)],
            )
        # Its length is known only now. Whoever waits here holds its frame, but nobody who has a header waits for one.
        with self._budgets.headers.admitted(_HEADER_COPIES * frames.header_length(body), copies=1):
            frame = frames.decode(body)
            if len(frame.op) > _MAX_OP_CHARS:
                raise FormatError("op is longer than any")
            return self._guarded(
                partial(self._operations.perform, frame, self.peer), partial(error_response, frame.op, frame.id)
            )

    def _guarded(
        self, perform: Callable[[], list[Buffer]], refuse: Callable[[MrgcError], list[Buffer]]
    ) -> list[Buffer]:
        try:
            return perform()
        except MrgcError as error:
            return refuse(socket_error(error))
        except Exception as error:  # noqa: BLE001  a defect in one request must not take the enclave from the others
            # The class only: an exception's text may quote what it failed on.
            logger.error("operation failed: %s", type(error).__name__)
            return refuse(InternalError())

    def _send(self, answer: list[Buffer]) -> None:
        frames.send(self._sock, answer, slice_bytes=self._limits.write_bytes)

    def _allow(self, limit_s: float | None) -> None:
        self._deadline_s = None if limit_s is None else time.monotonic() + limit_s
