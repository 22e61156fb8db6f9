"""Requests of the JSON protocol, read strictly (docs/spec.md §0 and §8).

A body is cut before it is parsed: the one long value, base64 that may hold a plaintext, stays in the frame's own
buffer, which is zeroed, and never becomes a Python text, which could not be. What is left is small, so parsing it
allocates little whatever it says.

Called by `enclave.connection` and `enclave.json_protocol`. May import: the standard library, mrgc.errors, mrgc.wire.
"""

from __future__ import annotations

import binascii
import re
from typing import Any, Final, NamedTuple

from mrgc.errors import FormatError, TooLargeError, UnsupportedError
from mrgc.wire import strict_json
from mrgc.wire.enclave_protocol import TOKEN_BYTES
from mrgc.wire.headers import KEY_ARN, REQUEST_ID, TENANT

MAX_REST_BYTES: Final = 64 << 10  #: Of a request without its payload; real ones take below 400.
_MAX_VALUES: Final = 64
#: Characters of base64 decoded at once: what binascii makes cannot be zeroed, so no more than this is left behind.
_PIECE_CHARS: Final = 64 << 10

#: A payload member, its value captured. In a valid text only the end of a member's name is followed by a colon and a
#: quote, and a value without escapes ends at the next quote: emptying it leaves every other member as it was.
_PAYLOAD: Final = re.compile(rb'"(?:encrypted_payload|plaintext_result)"[ \t\n\r]*:[ \t\n\r]*"([^"\\]*)"')

_MEMBERS: Final = {
    "hello": {"action", "token"},
    "decrypt": {"action", "encrypted_payload", "kms_key_arn", "tenant_id", "request_id"},
    "encrypt": {"action", "plaintext_result", "kms_key_arn", "request_id"},
    "health": {"action", "request_id"},
}


class JsonFrame(NamedTuple):
    """A request as far as it can be read without knowing its action."""

    #: Empty if unreadable: what an error can repeat.
    request_id: str
    members: dict[str, Any]
    #: Value of the payload member, still in the frame; its member holds an empty text instead.
    payload: memoryview
    #: Why there are no members.
    fault: FormatError | None

    def __repr__(self) -> str:
        return f"JsonFrame(payload of {len(self.payload)} characters)"


class HelloRequest(NamedTuple):
    """Start of a connection that has the token."""

    token: bytes

    def __repr__(self) -> str:
        return "HelloRequest(token=hidden)"


class DecryptRequest(NamedTuple):
    """A sealed job, or a bare ciphertext, to be opened."""

    request_id: str
    tenant: str
    key_arn: str
    payload: bytearray


class EncryptRequest(NamedTuple):
    """The answer to an earlier decrypt, to be sealed; its owner zeroes the body."""

    request_id: str
    key_arn: str
    body: bytearray

    def __repr__(self) -> str:
        return f"EncryptRequest(body of {len(self.body)} bytes)"


class HealthRequest(NamedTuple):
    """A question for health."""

    request_id: str


Request = HelloRequest | DecryptRequest | EncryptRequest | HealthRequest


def read(body: bytearray) -> JsonFrame:
    """Read the members of a request; one that is unreadable comes back with a fault, for `parse` to raise.

    Args:
        body: the frame's body; the payload stays in it.
    """
    nothing = memoryview(b"")
    try:
        found = _PAYLOAD.search(body)
        start, end = found.span(1) if found else (len(body), len(body))
        if len(body) - (end - start) > MAX_REST_BYTES:
            raise TooLargeError("json request is too long")
        members = strict_json.parse(body[:start] + body[end:], max_values=_MAX_VALUES)
        if type(members) is not dict:
            raise FormatError("json request is not an object")
    except FormatError as error:
        return JsonFrame("", {}, nothing, error)
    request_id = members.get("request_id")
    if type(request_id) is not str or REQUEST_ID.fullmatch(request_id) is None:
        request_id = ""
    return JsonFrame(request_id, members, memoryview(body)[start:end], None)


def parse(frame: JsonFrame) -> Request:
    """Hold a request to the rules of its action.

    Raises:
        TooLargeError: the request is longer than any.
        UnsupportedError: no such action.
        FormatError: whatever else breaks docs/spec.md §8.
    """
    if frame.fault is not None:
        raise frame.fault
    members = frame.members
    if not all(type(value) is str for value in members.values()) or "action" not in members:
        raise FormatError("json request has no action, or a value that is not text")
    names = _MEMBERS.get(members["action"])
    if names is None:
        raise UnsupportedError("no such action")
    if members.keys() != names:
        raise FormatError("json request has a missing or an unknown field")
    if members["action"] == "hello":
        return HelloRequest(_token(members["token"]))
    _ensure(frame.request_id, "request_id")
    if members["action"] == "health":
        return HealthRequest(frame.request_id)
    _ensure(KEY_ARN.fullmatch(members["kms_key_arn"]), "kms_key_arn")
    if members["action"] == "encrypt":
        return EncryptRequest(frame.request_id, members["kms_key_arn"], _payload(frame, "plaintext_result"))
    _ensure(TENANT.fullmatch(members["tenant_id"]), "tenant_id")
    payload = _payload(frame, "encrypted_payload")
    return DecryptRequest(frame.request_id, members["tenant_id"], members["kms_key_arn"], payload)


def decode_base64(text: memoryview) -> bytearray:
    """Decode base64 as docs/spec.md §0 allows it, into a buffer that its owner zeroes.

    Raises:
        FormatError: empty, or not the one encoding of anything: padding, other characters, unused bits.
    """
    _ensure(len(text) > 0 and len(text) % 4 == 0, "base64")
    data = bytearray(len(text) // 4 * 3 - bytes(text[-2:]).count(b"="))
    end = 0
    try:
        for start in range(0, len(text), _PIECE_CHARS):
            piece = binascii.a2b_base64(text[start : start + _PIECE_CHARS], strict_mode=True)
            data[end : end + len(piece)] = piece
            end += len(piece)
    except binascii.Error:
        raise FormatError("json request breaks the rules of base64") from None
    # A piece that ends in padding is shorter than its share, and binascii does not look at unused bits.
    last = (len(data) - 1) % 3 + 1
    _ensure(end == len(data) and binascii.b2a_base64(data[-last:], newline=False) == bytes(text[-4:]), "base64")
    return data


def _payload(frame: JsonFrame, name: str) -> bytearray:
    if frame.payload and not frame.members[name]:
        return decode_base64(frame.payload)
    # A value with escapes, which base64 does not need and some encoders write all the same ("\/").
    text: str = frame.members[name]
    _ensure(text.isascii(), "base64")
    return decode_base64(memoryview(text.encode()))


def _token(text: str) -> bytes:
    _ensure(text.isascii(), "token")
    token = bytes(decode_base64(memoryview(text.encode())))
    _ensure(len(token) == TOKEN_BYTES, "token")
    return token


def _ensure(holds: object, what: str) -> None:
    if not holds:
        raise FormatError(f"json request breaks the rules of {what}")
