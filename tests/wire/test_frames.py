"""Frames over a real socket pair: whole, cut, oversize and malformed."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrgc.errors import FormatError
from mrgc.wire import frames, strict_cbor


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected stream sockets."""
    left, right = socket.socketpair()
    for sock in (left, right):
        sock.settimeout(10)
    with left, right:
        yield left, right


def body(header: dict[str, object], rest: bytes = b"") -> bytes:
    """Lay out a frame body with an arbitrary header."""
    encoded = strict_cbor.encode(header)
    return struct.pack(">I", len(encoded)) + encoded + rest


@given(blobs=st.lists(st.binary(max_size=200), max_size=20), frame_id=st.integers(0, 2**64 - 1))
def test_decoding_undoes_encoding(blobs: list[bytes], frame_id: int) -> None:
    """Op, id, keys and blobs of a frame come back as they were."""
    buffers = frames.encode("open_batch", frame_id, {"k": [1, b"x"]}, blobs)
    data = b"".join(buffers)
    assert struct.unpack(">I", data[:4]) == (len(data) - 4,)
    frame = frames.decode(data[4:])
    assert (frame.op, frame.id, frame.header) == ("open_batch", frame_id, {"k": [1, b"x"]})
    assert [blob.tobytes() for blob in frame.blobs] == blobs


@pytest.mark.parametrize("slice_bytes", [1_000, 28 << 10, 64 << 10])
def test_a_frame_larger_than_the_sockets_buffers_arrives_whole(
    pair: tuple[socket.socket, socket.socket], slice_bytes: int
) -> None:
    """Megabytes of blobs of every size pass through short writes and short reads unchanged."""
    left, right = pair
    blobs = [bytes([index]) * (index * 977) for index in range(70)]
    writer = threading.Thread(
        target=frames.send, args=(left, frames.encode("x", 7, {}, blobs)), kwargs={"slice_bytes": slice_bytes}
    )
    writer.start()
    frame = frames.recv(right)
    writer.join()
    assert frame.id == 7
    assert [bytes(blob) for blob in frame.blobs] == blobs


def test_a_close_between_frames_differs_from_a_close_inside_one(pair: tuple[socket.socket, socket.socket]) -> None:
    """The peer may leave between frames; leaving inside one is a broken connection."""
    left, right = pair
    frames.send(left, frames.encode("x", 0, {}))
    left.sendall(b"\x00\x00\x00\x09half")
    left.close()
    assert frames.recv(right).op == "x"
    with pytest.raises(ConnectionError) as cut:
        frames.recv(right)
    assert not isinstance(cut.value, frames.ConnectionClosed)
    with pytest.raises(frames.ConnectionClosed):
        frames.recv(right)


@pytest.mark.parametrize("length", [0, frames.MAX_FRAME_BYTES + 1, 0xFFFFFFFF])
def test_a_length_outside_its_limits_is_refused_before_the_body_is_read(
    pair: tuple[socket.socket, socket.socket], length: int
) -> None:
    """Statement 10: an oversize frame costs its reader four bytes."""
    left, right = pair
    left.sendall(struct.pack(">I", length))
    with pytest.raises(FormatError):
        frames.recv_length(right)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00",
        struct.pack(">I", 0),
        struct.pack(">I", frames.MAX_HEADER_BYTES + 1) + bytes(9),
        struct.pack(">I", 100) + b"\xa0",
        struct.pack(">I", 1) + b"\x00",
        body({"id": 1, "sizes": []}),
        body({"op": "x", "sizes": []}),
        body({"op": "x", "id": b"1", "sizes": []}),
        body({"op": "x", "id": 1}),
        body({"op": "x", "id": 1, "sizes": 3}),
        body({"op": "x", "id": 1, "sizes": [b""]}),
        body({"op": "x", "id": 1, "sizes": [2]}, b"abc"),
        body({"op": "x", "id": 1, "sizes": [4]}, b"abc"),
        body({"op": "x", "id": 1, "sizes": [0] * 2_049}),
        body({"op": "x", "id": 1, "code": "auth"}, b"rest"),
    ],
    ids=range(15),
)
def test_a_malformed_body_is_refused(data: bytes) -> None:
    """Each frame that docs/spec.md §6 forbids is a FormatError."""
    with pytest.raises(FormatError):
        frames.decode(data)


def test_a_writer_cannot_exceed_the_limits_of_a_frame() -> None:
    """Too many blobs or too many bytes are refused before anything is written."""
    with pytest.raises(FormatError):
        frames.encode("x", 0, {}, [b""] * 2_049)
    with pytest.raises(FormatError):
        frames.encode("x", 0, {}, [memoryview(bytearray(frames.MAX_FRAME_BYTES))])
    with pytest.raises(FormatError):
        frames.encode("x", 0, {"k": bytes(frames.MAX_HEADER_BYTES)})
