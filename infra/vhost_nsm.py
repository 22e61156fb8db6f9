"""The software NSM as a device of a virtual machine: its guest's own /dev/nsm answers with documents of our test root.

A vhost-user back end (QEMU docs/interop/vhost-user.rst) for virtio device 33. QEMU connects, hands over the guest's
memory and one queue, and Linux' driver in the guest puts requests there: each is two chains, one with the request and
one for the response (drivers/misc/nsm.c). A connection is one boot: the guest's registers are fresh for each.

Called by `infra.vm` and tests. May import: the standard library, infra.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Final

from infra.nsm_commands import NsmCommands
from infra.virtqueue import Addresses, Chain, Memory, QueueError, Region, Virtqueue

#: Type of the device, and its single queue with room for one request and its response.
VIRTIO_ID: Final = 33
QUEUE_ENTRIES: Final = 2

_VERSION_1: Final = 1 << 32
_PROTOCOL_FEATURES: Final = 1 << 30
_REPLY_ACK: Final = 1 << 3
_HEADER: Final = struct.Struct("<III")  # request, flags, size
_U64: Final = struct.Struct("<Q")
_STATE: Final = struct.Struct("<II")  # queue, number
_ADDRESSES: Final = struct.Struct("<IIQQQQ")  # queue, flags, descriptors, used, available, log
_REGION: Final = struct.Struct("<QQQQ")  # guest address, size, user address, offset in the file
_VERSION, _REPLY, _NEED_REPLY = 1, 1 << 2, 1 << 3
_NO_FD: Final = 1 << 8  # of the messages that carry an event descriptor
#: A memory table has at most eight regions, and nothing else is longer.
_MAX_PAYLOAD_BYTES: Final = 8 + 8 * _REGION.size
_MAX_FDS: Final = 8


class VhostNsm:
    """One connection of QEMU.

    Args:
        sock: connected; closed by `serve`.
        commands: of this boot.
    """

    def __init__(self, sock: socket.socket, commands: NsmCommands) -> None:
        self._sock = sock
        self._commands = commands
        self._memory = Memory([])
        self._mappings: list[mmap.mmap] = []
        self._entries = 0
        self._base = 0
        self._addresses: Addresses | None = None
        self._queue: Virtqueue | None = None
        #: Whether the ring may be touched; QEMU switches it off before it asks where the queue stands.
        self._enabled = False
        self._kick: int | None = None
        self._call: int | None = None
        #: Chains taken and not yet given back: a request whose response's chain has not come yet.
        self._waiting: list[Chain] = []
        self._messages: dict[int, Callable[[bytes, list[int]], bytes | None]] = {
            1: lambda _data, _fds: _U64.pack(_VERSION_1 | _PROTOCOL_FEATURES),
            2: _accept,  # features: what the guest took of those offered
            3: _accept,  # owner
            5: self._set_memory,
            8: self._set_entries,
            9: self._set_addresses,
            10: self._set_base,
            11: self._stop_queue,
            12: self._set_kick,
            13: self._set_call,
            14: _accept,  # where to report a broken queue; ending the connection says as much
            15: lambda _data, _fds: _U64.pack(_REPLY_ACK),
            16: _accept,
            17: lambda _data, _fds: _U64.pack(1),
            18: self._enable,
        }

    def serve(self) -> None:
        """Answer until QEMU leaves or breaks the protocol."""
        with self._sock, contextlib.suppress(QueueError, OSError, struct.error):
            while True:
                waiting = [self._sock.fileno()] + ([self._kick] if self._enabled and self._kick is not None else [])
                ready, _, _ = select.select(waiting, [], [])
                if self._sock.fileno() in ready and not self._message():
                    break
                if self._kick in ready and self._kick is not None:
                    os.read(self._kick, _U64.size)
                    self._answer()
        self._release()

    def _message(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self._sock, _HEADER.size, _MAX_FDS)
        try:
            if not data:
                return False
            data += _exactly(self._sock, _HEADER.size - len(data))
            request, flags, size = _HEADER.unpack(data)
            if size > _MAX_PAYLOAD_BYTES or request not in self._messages:
                raise QueueError("a message that was not offered")
            answer = self._messages[request](_exactly(self._sock, size), fds)
        finally:
            for fd in fds:
                os.close(fd)
        if answer is None and flags & _NEED_REPLY:
            answer = _U64.pack(0)
        if answer is not None:
            self._sock.sendall(_HEADER.pack(request, _VERSION | _REPLY, len(answer)) + answer)
        return True

    def _set_memory(self, data: bytes, fds: list[int]) -> None:
        count = _STATE.unpack_from(data)[0]
        if count != len(fds):
            raise QueueError("a memory table without its files")
        self._unmap()
        regions = []
        for index, fd in enumerate(fds):
            guest, size, user, offset = _REGION.unpack_from(data, _STATE.size + index * _REGION.size)
            try:
                mapping = mmap.mmap(fd, offset + size)
            except (ValueError, OverflowError):
                raise QueueError("a piece of memory that its file does not have") from None
            self._mappings.append(mapping)
            regions.append(Region(guest, user, memoryview(mapping)[offset : offset + size]))
        self._memory = Memory(regions)

    def _set_entries(self, data: bytes, _fds: list[int]) -> None:
        self._entries = _STATE.unpack(data)[1]

    def _set_addresses(self, data: bytes, _fds: list[int]) -> None:
        _, _, descriptors, used, available, _ = _ADDRESSES.unpack(data)
        self._addresses = Addresses(descriptors, available, used)

    def _set_base(self, data: bytes, _fds: list[int]) -> None:
        self._base = _STATE.unpack(data)[1]

    def _stop_queue(self, data: bytes, _fds: list[int]) -> bytes:
        if self._queue is not None:
            self._base = self._queue.next_available
        self._queue, self._enabled = None, False
        self._waiting.clear()
        return _STATE.pack(_STATE.unpack(data)[0], self._base)

    def _set_kick(self, data: bytes, fds: list[int]) -> None:
        self._kick = _replaced(self._kick, data, fds)

    def _set_call(self, data: bytes, fds: list[int]) -> None:
        self._call = _replaced(self._call, data, fds)
        # An answer given just before went to the old descriptor; an interrupt too many does no harm.
        self._interrupt()

    def _enable(self, data: bytes, _fds: list[int]) -> None:
        # Until here the ring may not be touched: the descriptors above may still be changed.
        self._enabled = bool(_STATE.unpack(data)[1])
        if self._enabled and self._queue is None:
            if self._addresses is None:
                raise QueueError("a queue without addresses")
            self._queue = Virtqueue(self._memory, self._entries, self._addresses, next_available=self._base)
        self._answer()

    def _answer(self) -> None:
        if self._queue is None or not self._enabled:
            return
        self._waiting += self._queue.take()
        done: list[tuple[int, int]] = []
        # One chain with both parts, or two in this order: both published at once, as the driver expects them.
        while self._waiting:
            chains = self._waiting[: 1 if self._waiting[0].writable else 2]
            if not chains[-1].writable:
                break
            del self._waiting[: len(chains)]
            request = b"".join(bytes(part) for chain in chains for part in chain.readable)
            written = _scatter(self._commands.answer(request), chains[-1].writable)
            done += [(chain.head, 0) for chain in chains[:-1]] + [(chains[-1].head, written)]
        if done:
            self._queue.put(done)
            self._interrupt()

    def _interrupt(self) -> None:
        if self._call is not None:
            os.write(self._call, _U64.pack(1))

    def _release(self) -> None:
        self._queue = None
        self._waiting.clear()
        for fd in (self._kick, self._call):
            if fd is not None:
                os.close(fd)
        self._unmap()

    def _unmap(self) -> None:
        self._memory = Memory([])
        for mapping in self._mappings:
            # A view that still refers to it is dropped with its queue, and the mapping with it.
            with contextlib.suppress(BufferError):
                mapping.close()
        self._mappings.clear()


def _accept(_data: bytes, _fds: list[int]) -> None:
    return None


def _replaced(old: int | None, data: bytes, fds: list[int]) -> int | None:
    if old is not None:
        os.close(old)
    return None if _U64.unpack(data)[0] & _NO_FD or not fds else os.dup(fds[0])


def _scatter(data: bytes, pieces: list[memoryview]) -> int:
    at = 0
    for piece in pieces:
        part = data[at : at + len(piece)]
        piece[: len(part)] = part
        at += len(part)
    if at < len(data):
        raise QueueError("no room for the response")
    return at


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise QueueError("the other side left inside a message")
        data += part
    return data
