"""Length-prefixed frames of the enclave and engine sockets (docs/spec.md §6).

A frame is `u32 length ‖ u32 header length ‖ CBOR header ‖ blobs`; `sizes` in the header cuts the blobs. Bodies
stay outside CBOR, so they are neither copied on encoding nor on decoding. This module moves whole frames over a
stream socket; deadlines are the socket's own timeout, set by whoever owns the connection.

May import: the standard library, mrgc.errors, mrgc.wire.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from mrgc.errors import FormatError
from mrgc.wire import strict_cbor
from mrgc.wire.strict_cbor import Buffer

MAX_FRAME_BYTES: Final = 64 << 20  #: docs/spec.md §6, 67,108,864; refused before anything is allocated.
MAX_HEADER_BYTES: Final = 1 << 20  #: docs/spec.md §6.
MAX_BLOBS: Final = 2_048  #: docs/spec.md §6, `sizes`.
SLICE_BYTES: Final = 128 << 10  #: Longest single write; vsock throughput peaks at 64–128 KiB writes.
LENGTH_BYTES: Final = 4

_U32: Final = struct.Struct(">I")
_MAX_BUFFERS_PER_WRITE: Final = 512  #: Half of Linux's IOV_MAX.


class ConnectionClosed(ConnectionError):
    """Raised when the peer closed the connection between two frames, which is its right."""


class Frame(NamedTuple):
    """One decoded frame.

    `header` holds the op's own keys; `op`, `id` and `sizes` are taken out. Blobs are views into the body.
    """

    op: str
    id: int
    header: dict[str, Any]
    blobs: list[memoryview]


def encode(op: str, frame_id: int, header: Mapping[str, Any], blobs: Sequence[Buffer] = ()) -> list[Buffer]:
    """Lay out one frame as buffers to be written in order; the blobs are not copied.

    Args:
        op: name of the operation.
        frame_id: chosen by the requester, repeated in the response.
        header: the op's own keys. A `code` in it makes an error response, which has no blobs.
        blobs: bodies, at most 2,048.

    Returns:
        [length ‖ header length ‖ header, *blobs].

    Raises:
        FormatError: the frame would exceed docs/spec.md §6.
    """
    fields: dict[str, Any] = {"op": op, "id": frame_id, **header}
    if "code" not in header:
        fields["sizes"] = [len(blob) for blob in blobs]
    encoded = strict_cbor.encode(fields)
    length = _U32.size + len(encoded) + sum(map(len, blobs))
    if len(encoded) > MAX_HEADER_BYTES or len(blobs) > MAX_BLOBS or length > MAX_FRAME_BYTES:
        raise FormatError("frame is over its limits")
    return [_U32.pack(length) + _U32.pack(len(encoded)) + encoded, *blobs]


def header_length(body: Buffer) -> int:
    """Return how long the header of a frame is, so that its reader can see to the memory that decoding it takes.

    Raises:
        FormatError: the length is outside its limits, or the body is shorter.
    """
    if len(body) < _U32.size:
        raise FormatError("frame has no header")
    (length,) = _U32.unpack_from(body)
    if not 1 <= length <= MAX_HEADER_BYTES or _U32.size + length > len(body):
        raise FormatError("frame header length is outside its limits")
    return int(length)


def decode(body: Buffer) -> Frame:
    """Decode the body of a frame, the bytes after its length.

    Raises:
        FormatError: the header is not canonical, or `sizes` does not sum to the rest exactly.
    """
    view = memoryview(body)
    start = _U32.size + header_length(view)
    fields = strict_cbor.decode(view[_U32.size : start])
    if type(fields) is not dict:
        raise FormatError("frame header is not a map")
    op, frame_id, sizes = fields.pop("op", None), fields.pop("id", None), fields.pop("sizes", None)
    if type(op) is not str or type(frame_id) is not int:
        raise FormatError("frame header lacks op or id")
    if "code" in fields:
        if sizes is not None:
            raise FormatError("frame header has both code and sizes")
        sizes = []
    return Frame(op, frame_id, fields, _cut(view[start:], sizes))


def send(sock: socket.socket, buffers: Sequence[Buffer], *, slice_bytes: int = SLICE_BYTES) -> None:
    """Write the buffers of one frame, gathered into writes of at most `slice_bytes`.

    Raises:
        OSError: the connection broke or its timeout passed; the frame may be half written, so drop it.
    """
    for group in _slices(buffers, slice_bytes):
        sent = sock.sendmsg(group)
        if sent < sum(map(len, group)):
            # A short write is rare; finishing it from one joined copy keeps the common path free of bookkeeping.
            sock.sendall(b"".join(group)[sent:])


def recv(sock: socket.socket, *, max_bytes: int = MAX_FRAME_BYTES) -> Frame:
    """Read one whole frame.

    Raises:
        ConnectionClosed: the peer closed between frames.
        ConnectionError: the peer closed inside the frame.
        FormatError: the frame breaks docs/spec.md §6; the stream is out of step, so drop the connection.
    """
    return decode(recv_body(sock, recv_length(sock, max_bytes=max_bytes)))


def recv_length(sock: socket.socket, *, max_bytes: int = MAX_FRAME_BYTES) -> int:
    """Read a frame's length and refuse it before anything is allocated for the frame.

    Raises:
        ConnectionClosed: the peer closed between frames.
        FormatError: zero, or over `max_bytes`.
    """
    prefix = bytearray(_U32.size)
    count = sock.recv_into(prefix)
    if count == 0:
        raise ConnectionClosed("peer closed the connection")
    recv_exactly(sock, memoryview(prefix)[count:])
    (length,) = _U32.unpack(prefix)
    if not 1 <= length <= max_bytes:
        raise FormatError("frame length is outside its limits")
    return int(length)


def recv_body(sock: socket.socket, length: int) -> bytearray:
    """Read the `length` bytes of a frame's body into a buffer that its owner may zero."""
    body = bytearray(length)
    recv_exactly(sock, memoryview(body))
    return body


def recv_exactly(sock: socket.socket, view: memoryview) -> None:
    """Fill `view` from the socket.

    Raises:
        ConnectionError: the peer closed first.
        OSError: the socket's timeout passed, or the connection broke.
    """
    while view:
        count = sock.recv_into(view)
        if count == 0:
            raise ConnectionError("peer closed the connection inside a frame")
        view = view[count:]


def _cut(rest: memoryview, sizes: object) -> list[memoryview]:
    if type(sizes) is not list or len(sizes) > MAX_BLOBS or any(type(size) is not int for size in sizes):
        raise FormatError("frame sizes are not a list of at most 2,048 integers")
    if sum(sizes) != len(rest):
        raise FormatError("frame sizes do not sum to the frame's length")
    blobs, offset = [], 0
    for size in sizes:
        blobs.append(rest[offset : offset + size])
        offset += size
    return blobs


def _slices(buffers: Sequence[Buffer], slice_bytes: int) -> Iterator[list[Buffer]]:
    group: list[Buffer] = []
    room = slice_bytes
    for buffer in buffers:
        rest = buffer
        while len(rest) >= room:
            view = memoryview(rest)
            group.append(view[:room])
            yield group
            group, room, rest = [], slice_bytes, view[room:]
        if rest:
            group.append(rest)
            room -= len(rest)
        if len(group) == _MAX_BUFFERS_PER_WRITE:
            yield group
            group, room = [], slice_bytes
    if group:
        yield group
