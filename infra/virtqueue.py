"""A split virtqueue in another process's memory, seen from the device: chains in, chains out.

Virtio 1.2 §2.7. The driver is a guest that may be hostile: every address, length and index is checked against the
memory that was handed over, and a queue that breaks the rules ends its connection. Called by `infra.vhost_nsm`. May
import: the standard library.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

MAX_ENTRIES: Final = 32_768  #: Virtio 1.2 §2.7, largest queue size.

_DESCRIPTOR: Final = struct.Struct("<QIHH")  # address, length, flags, next
_USED: Final = struct.Struct("<II")  # head, written
_U16: Final = struct.Struct("<H")
_NEXT, _WRITE = 1, 2
_RING_HEAD_BYTES: Final = 4  # flags, index
_INDEX_AT: Final = 2


class QueueError(Exception):
    """Raised when the other side breaks the rules of virtio; the connection is ended."""


class Region(NamedTuple):
    """A piece of the guest's memory."""

    guest_address: int
    #: The same piece's address in the process that set the queue up; the ring addresses are of this kind.
    user_address: int
    view: memoryview


class Memory:
    """The guest's memory, found by either kind of address."""

    def __init__(self, regions: Sequence[Region]) -> None:
        self._regions = regions

    def guest(self, address: int, size: int) -> memoryview:
        """Return `size` bytes at a guest's physical address.

        Raises:
            QueueError: they do not lie in one piece of the guest's memory.
        """
        return self._find([(region.guest_address, region.view) for region in self._regions], address, size)

    def user(self, address: int, size: int) -> memoryview:
        """Return `size` bytes at an address of the process that set the queue up.

        Raises:
            QueueError: they do not lie in one piece of the guest's memory.
        """
        return self._find([(region.user_address, region.view) for region in self._regions], address, size)

    @staticmethod
    def _find(pieces: Sequence[tuple[int, memoryview]], address: int, size: int) -> memoryview:
        for start, view in pieces:
            if start <= address and address + size <= start + len(view):
                return view[address - start : address - start + size]
        raise QueueError("an address outside the guest's memory")


class Chain(NamedTuple):
    """One buffer chain: what the driver wrote, and where the device may write."""

    head: int
    readable: list[memoryview]
    writable: list[memoryview]


class Addresses(NamedTuple):
    """Where the three parts of a queue lie, as addresses of the process that set it up."""

    descriptors: int
    available: int
    used: int


class Virtqueue:
    """One queue.

    Args:
        memory: the guest's.
        entries: queue size, a power of two.
        addresses: of its parts.
        next_available: index of the first chain to take.

    Raises:
        QueueError: a part lies outside the guest's memory, or the size is none.
    """

    def __init__(self, memory: Memory, entries: int, addresses: Addresses, *, next_available: int) -> None:
        if not 0 < entries <= MAX_ENTRIES or entries & (entries - 1):
            raise QueueError("a queue size that is no power of two")
        self._memory = memory
        self._entries = entries
        self._descriptors = memory.user(addresses.descriptors, _DESCRIPTOR.size * entries)
        self._available = memory.user(addresses.available, _RING_HEAD_BYTES + _U16.size * entries)
        # The event index behind the ring is the device's to write (§2.7.10).
        self._used = memory.user(addresses.used, _RING_HEAD_BYTES + _USED.size * entries + _U16.size)
        self.next_available = next_available
        self._next_used = _U16.unpack_from(self._used, _INDEX_AT)[0]

    def take(self) -> Iterator[Chain]:
        """Yield the chains that the driver has made available since the last call.

        Raises:
            QueueError: a chain that does not end, or leads out of the guest's memory.
        """
        end = _U16.unpack_from(self._available, _INDEX_AT)[0]
        if (end - self.next_available) % (1 << 16) > self._entries:
            raise QueueError("more chains than the queue has entries")
        while self.next_available != end:
            at = _RING_HEAD_BYTES + _U16.size * (self.next_available % self._entries)
            head = _U16.unpack_from(self._available, at)[0]
            self.next_available = (self.next_available + 1) % (1 << 16)
            yield self._chain(head)

    def put(self, done: Sequence[tuple[int, int]]) -> None:
        """Give chains back, all at once.

        Args:
            done: head and number of bytes written of each, in the order in which the driver expects them.
        """
        for head, written in done:
            at = _RING_HEAD_BYTES + _USED.size * (self._next_used % self._entries)
            _USED.pack_into(self._used, at, head, written)
            self._next_used = (self._next_used + 1) % (1 << 16)
        # A driver that negotiated event indices (old QEMUs let it) kicks again only after this one.
        _U16.pack_into(self._used, len(self._used) - _U16.size, self.next_available)
        # One store of 16 bits: the guest must never see half of it.
        self._used[_INDEX_AT : _INDEX_AT + _U16.size].cast("H")[0] = self._next_used

    def _chain(self, head: int) -> Chain:
        chain = Chain(head, [], [])
        index = head
        for _ in range(self._entries):
            if index >= self._entries:
                raise QueueError("a descriptor outside the table")
            address, length, flags, following = _DESCRIPTOR.unpack_from(self._descriptors, _DESCRIPTOR.size * index)
            if flags & ~(_NEXT | _WRITE):
                raise QueueError("a kind of descriptor that was not offered")
            piece = self._memory.guest(address, length)
            (chain.writable if flags & _WRITE else chain.readable).append(piece)
            if not flags & _NEXT:
                return chain
            index = following
        raise QueueError("a chain that does not end")
