"""QEMU's side of vhost-user, and Linux' NSM driver above it: enough of both to drive a back end without a machine.

Message numbers and layouts are those of QEMU docs/interop/vhost-user.rst, the ring is Virtio 1.2 §2.7, the two chains
per request are Linux drivers/misc/nsm.c. Written from those, not from the back end's code.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import socket
import struct
from typing import Any, Final

import cbor2

GUEST: Final = 0x4000_0000
USER: Final = 0x7F00_0000_0000
SIZE: Final = 1 << 20
DESCRIPTORS, AVAILABLE, USED, REQUEST, RESPONSE = 0x0, 0x1000, 0x2000, 0x4000, 0x8000
RESPONSE_BYTES: Final = 0x3000
ANSWER_S: Final = 20.0


class FrontEnd:
    """A front end that has connected and set up one queue.

    Args:
        sock: connected to the back end.
        entries: queue size.
        reply_ack: whether to ask for an answer to every message.
        memory_at: where in its file the guest's memory begins.
    """

    def __init__(self, sock: socket.socket, *, entries: int = 2, reply_ack: bool = True, memory_at: int = 0) -> None:
        self.sock = sock
        self.entries = entries
        self._flags = 1 | (8 if reply_ack else 0)
        self.file = os.memfd_create("guest")
        os.ftruncate(self.file, memory_at + SIZE)
        self.memory = mmap.mmap(self.file, memory_at + SIZE)
        self._at = memory_at
        self.kick, self.call = os.eventfd(0), os.eventfd(0)
        self._seen = 0

    def start(self) -> None:
        """Negotiate and hand the queue over, in QEMU's order."""
        features = self.ask(1)
        assert features & (1 << 32)
        assert features & (1 << 30)
        assert self.ask(15) & (1 << 3)
        self.tell(16, struct.pack("<Q", 1 << 3))
        self.tell(3, b"")
        self.tell(13, struct.pack("<Q", 0), [self.call])
        self.tell(2, struct.pack("<Q", 1 << 32 | 1 << 30))
        self.tell(5, struct.pack("<IIQQQQ", 1, 0, GUEST, SIZE, USER, self._at), [self.file])
        self.tell(8, struct.pack("<II", 0, self.entries))
        self.tell(10, struct.pack("<II", 0, 0))
        parts = (USER + DESCRIPTORS, USER + USED, USER + AVAILABLE)
        self.tell(9, struct.pack("<IIQQQQ", 0, 0, *parts, 0))
        self.tell(12, struct.pack("<Q", 0), [self.kick])
        self.tell(13, struct.pack("<Q", 0), [self.call])
        self.tell(18, struct.pack("<II", 0, 1))

    def ask(self, request: int, payload: bytes = b"") -> int:
        """Send a message that has an answer of its own, and return that."""
        self.sock.sendall(struct.pack("<III", request, 1, len(payload)) + payload)
        return self._answer(request)

    def tell(self, request: int, payload: bytes, fds: list[int] | None = None) -> None:
        """Send a message without an answer; with REPLY_ACK, demand that it succeeded."""
        message = struct.pack("<III", request, self._flags, len(payload)) + payload
        socket.send_fds(self.sock, [message], fds or [])
        if self._flags & 8:
            assert self._answer(request) == 0

    def stop(self) -> int:
        """Take the queue back; returns the index from which it would go on."""
        self.tell(18, struct.pack("<II", 0, 0))
        return self.ask(11, struct.pack("<II", 0, 0)) >> 32

    def put(self, offset: int, data: bytes) -> None:
        """Write into the guest's memory."""
        self.memory[self._at + offset : self._at + offset + len(data)] = data

    def get(self, offset: int, size: int) -> bytes:
        """Read from the guest's memory."""
        return self.memory[self._at + offset : self._at + offset + size]

    def request(self, request: bytes, *, chains: int = 2, room: int = RESPONSE_BYTES) -> bytes:
        """Do what the driver does for one ioctl: chains out, one kick, wait for both, take the response."""
        self.put(REQUEST, request)
        linked = 1 if chains == 1 else 0
        self.put(DESCRIPTORS, struct.pack("<QIHH", GUEST + REQUEST, len(request), linked, 1))
        self.put(DESCRIPTORS + 16, struct.pack("<QIHH", GUEST + RESPONSE, room, 2, 0))
        for head in range(chains):
            self._publish(head)
        os.eventfd_write(self.kick, 1)
        self.wait(self._seen + chains)
        used = [self._used(index) for index in range(self._seen, self._seen + chains)]
        self._seen += chains
        assert [head for head, _ in used] == list(range(chains))
        return self.get(RESPONSE, used[-1][1])

    def command(self, request: Any) -> Any:
        """Send a request as CBOR and return the response's value."""
        return cbor2.loads(self.request(cbor2.dumps(request)))

    def offer(self, head: int) -> None:
        """Make a chain available and kick."""
        self._publish(head)
        os.eventfd_write(self.kick, 1)

    def wait(self, index: int) -> None:
        """Wait until the back end has given back chains up to an index, by its interrupt."""
        while struct.unpack("<H", self.get(USED + 2, 2))[0] != index % (1 << 16):
            ready, _, _ = select.select([self.call, self.sock.fileno()], [], [], ANSWER_S)
            assert self.call in ready, "the back end left, or never answered"
            os.eventfd_read(self.call)

    def ended(self) -> bool:
        """Wait for the back end's end of the connection."""
        ready, _, _ = select.select([self.sock], [], [], ANSWER_S)
        try:
            return bool(ready) and self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        """Leave, as QEMU does when it ends."""
        self.sock.close()
        self.memory.close()
        for descriptor in (self.file, self.kick, self.call):
            os.close(descriptor)

    def _publish(self, head: int) -> None:
        index = struct.unpack("<H", self.get(AVAILABLE + 2, 2))[0]
        self.put(AVAILABLE + 4 + 2 * (index % self.entries), struct.pack("<H", head))
        at = ctypes.c_uint16.from_buffer(self.memory, self._at + AVAILABLE + 2)
        at.value = (index + 1) % (1 << 16)
        del at

    def _used(self, index: int) -> tuple[int, int]:
        head, written = struct.unpack("<II", self.get(USED + 4 + 8 * (index % self.entries), 8))
        return head, written

    def _answer(self, request: int) -> int:
        received = b""
        while len(received) < 20:
            part = self.sock.recv(20 - len(received))
            assert part, "the back end left"
            received += part
        answered, flags, size, value = struct.unpack("<IIIQ", received)
        assert (answered, flags, size) == (request, 5, 8)
        return int(value)
