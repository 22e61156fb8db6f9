"""Frames (docs/spec.md §6), as the bytes of a connection: what is accepted encodes to the received bytes."""

from __future__ import annotations

from random import Random

from fuzz.target import MutateBytes, Target
from fuzz.values import cbor_mutation
from mrgc.errors import FormatError
from mrgc.wire import frames
from mrgc.wire.enclave_protocol import Health, Op, SealRequest, health_response, seal_batch_request

#: As small as the enclave's own cap for a peer without the token.
_MAX_FRAME_BYTES = 64 << 10
_LENGTHS_BYTES = 8


class _Peer:
    """A socket's reading side: gives what it has in pieces, then reports the end."""

    def __init__(self, data: bytes, piece_bytes: int) -> None:
        self._rest = memoryview(data)
        self._piece_bytes = piece_bytes

    def recv_into(self, buffer: bytearray | memoryview) -> int:
        count = min(len(buffer), len(self._rest), self._piece_bytes)
        memoryview(buffer)[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def check(data: bytes) -> bool:
    """Read frames until the connection ends or breaks."""
    accepted = [_read_all(data, piece_bytes=size) for size in (len(data) + 1, len(data) // 8 + 1)]
    # How the bytes were cut on their way changes nothing.
    assert accepted[0] == accepted[1]
    assert b"".join(accepted[0]) == data[: sum(map(len, accepted[0]))]
    return bool(accepted[0])


def _read_all(data: bytes, *, piece_bytes: int) -> list[bytes]:
    peer, accepted = _Peer(data, piece_bytes), []
    try:
        while True:
            frame = frames.recv(peer, max_bytes=_MAX_FRAME_BYTES)  # type: ignore[arg-type]
            accepted.append(b"".join(frames.encode(frame.op, frame.id, frame.header, frame.blobs)))
    except (FormatError, ConnectionError):
        return accepted


def seeds() -> dict[str, bytes]:
    """Requests and responses, one and several, whole and broken."""
    seal = SealRequest(bytes(32), bytes(40), "ok", "m@sha256:" + "0" * 64, "application/json", b"aad", b"body")
    whole = b"".join(seal_batch_request(7, [seal, seal]))
    health = b"".join(health_response(1, Health("00" * 8, True, True, False, 3, 60)))
    refusal = b"".join(frames.encode("open_batch", 2, {"code": "busy"}))
    return {
        "blobs": whole,
        "no-blobs": b"".join(frames.encode(Op.HEALTH, 0, {})),
        "response": health,
        "refusal": refusal,
        "three": whole + health + refusal,
        "cut-in-length": whole[:3],
        "cut-in-body": whole[:-1],
        "no-length": bytes(4),
        "huge-length": b"\xff" * 8,
        "huge-header-length": bytes.fromhex("00000005ffffffff00"),
        "json": b"\x00\x00\x00\x02{}",
    }


def mutate(data: bytes, random: Random, mutate_bytes: MutateBytes) -> bytes:
    """Change the header of the first frame and state the new lengths, or change any byte."""
    if len(data) < _LENGTHS_BYTES or random.randrange(3) == 0:
        return mutate_bytes(data)
    end, start = 4 + int.from_bytes(data[:4], "big"), _LENGTHS_BYTES + int.from_bytes(data[4:8], "big")
    header, blobs = cbor_mutation(data[_LENGTHS_BYTES:start], random, mutate_bytes), data[start:end]
    length = 4 + len(header) + len(blobs)
    return length.to_bytes(4, "big") + len(header).to_bytes(4, "big") + header + blobs + data[end:]


TARGET = Target(check, seeds, mutate)
