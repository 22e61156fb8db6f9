"""Answers of the JSON protocol, laid out as frames (docs/spec.md §8).

Called by `enclave.json_protocol` and `enclave.connection`. May import: the standard library, mrgc.errors, mrgc.wire.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Mapping
from typing import Final

from mrgc.errors import MrgcError
from mrgc.wire.frames import LENGTH_BYTES
from mrgc.wire.strict_cbor import Buffer

#: Bytes encoded at once: what binascii makes cannot be zeroed, so no more than its text is left behind.
_PIECE_BYTES: Final = 48 << 10


def error_answer(request_id: str, error: MrgcError) -> bytearray:
    """Build the answer to a request that was refused."""
    return _framed(_text({"success": False, "error": error.code, "request_id": request_id}))


def hello_answer() -> bytearray:
    """Build the answer to a hello."""
    return _framed(_text({"success": True}))


def health_answer(*, attestation_ready: bool, kms_ready: bool) -> bytearray:
    """Build the answer to health."""
    return _framed(_text({"status": "healthy", "attestation_ready": attestation_ready, "kms_ready": kms_ready}))


def decrypt_answer(request_id: str, plaintext: Buffer) -> bytearray:
    """Build the answer to decrypt, in a buffer that is zeroed when it was sent."""
    return _with_payload("plaintext", plaintext, request_id)


def encrypt_answer(request_id: str, sealed: Buffer) -> bytearray:
    """Build the answer to encrypt."""
    return _with_payload("encrypted_response", sealed, request_id)


def _with_payload(name: str, payload: Buffer, request_id: str) -> bytearray:
    head = b'{"%s": "' % name.encode()
    tail = b'", ' + _text({"success": True, "request_id": request_id})[1:]
    end = LENGTH_BYTES + len(head)
    answer = bytearray(end + -(-len(payload) // 3) * 4 + len(tail))
    answer[:LENGTH_BYTES] = (len(answer) - LENGTH_BYTES).to_bytes(LENGTH_BYTES, "big")
    answer[LENGTH_BYTES:end] = head
    view = memoryview(payload)
    # In place: a buffer that grows leaves its earlier, shorter self behind.
    for start in range(0, len(payload), _PIECE_BYTES):
        piece = binascii.b2a_base64(view[start : start + _PIECE_BYTES], newline=False)
        answer[end : end + len(piece)] = piece
        end += len(piece)
    answer[end:] = tail
    return answer


def _text(members: Mapping[str, str | bool]) -> bytes:
    return json.dumps(members).encode()


def _framed(text: bytes) -> bytearray:
    return bytearray(len(text).to_bytes(LENGTH_BYTES, "big") + text)
