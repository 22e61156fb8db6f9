"""The CBOR of attestation documents: RFC 8949 data that Nitro writes, and nothing that only a forger would.

Unlike docs/spec.md §0, indefinite lengths are accepted (genuine documents of 2026 have them). Refused before any
object is built: tags, floats, undefined and other simple values, nesting beyond `MAX_DEPTH`, lengths beyond the
input, trailing bytes; and, at any level, a key that occurs twice. Called by `mrgc.attest.cose` and
`mrgc.attest.document`. May import: the standard library, cbor2, mrgc.errors.
"""

from __future__ import annotations

from typing import Any, Final

import cbor2

from mrgc.errors import DocumentFormatError

#: A document needs two levels (map, then pcrs or cabundle); unknown extra keys may hold a little more.
MAX_DEPTH: Final = 4

_UINT, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_LITERALS: Final = (20, 21, 22)  # false, true, null
_INDEFINITE: Final = 31
_BREAK: Final = 0xFF


def decode(data: bytes) -> Any:
    """Return the one item that `data` encodes.

    Raises:
        DocumentFormatError: the bytes are not exactly one item of the accepted kind.
    """
    if _end_of_item(data, 0, depth=1) != len(data):
        raise DocumentFormatError("trailing bytes after a CBOR item")
    try:
        return cbor2.loads(data, allow_duplicate_keys=False)
    except (cbor2.CBORDecodeError, TypeError, ValueError) as err:  # duplicate or unhashable key, invalid UTF-8
        raise DocumentFormatError("not valid CBOR") from err


def _end_of_item(data: bytes, at: int, *, depth: int) -> int:
    """Walk over the item at `at` without building it; return the offset after it."""
    if depth > MAX_DEPTH + 1:  # leaves of the deepest container are one level below it
        raise DocumentFormatError("CBOR is nested too deeply")
    major, argument, at = _head(data, at)
    if major in (_UINT, _NEGATIVE, _SIMPLE):
        return at
    if major in (_BYTES, _TEXT):
        return _end_of_string(data, at, major=major, length=argument)
    items_per_entry = 2 if major == _MAP else 1
    if argument is None:
        while _byte(data, at) != _BREAK:
            for _ in range(items_per_entry):
                at = _end_of_item(data, at, depth=depth + 1)
        return at + 1
    if argument * items_per_entry > len(data) - at:
        raise DocumentFormatError("CBOR length exceeds the input")
    for _ in range(argument * items_per_entry):
        at = _end_of_item(data, at, depth=depth + 1)
    return at


def _end_of_string(data: bytes, at: int, *, major: int, length: int | None) -> int:
    if length is None:
        while _byte(data, at) != _BREAK:
            chunk_major, chunk_length, at = _head(data, at)
            if chunk_major != major or chunk_length is None:
                raise DocumentFormatError("CBOR string has a chunk of another kind")
            at = _end_of_string(data, at, major=major, length=chunk_length)
        return at + 1
    if length > len(data) - at:
        raise DocumentFormatError("CBOR length exceeds the input")
    return at + length


def _head(data: bytes, at: int) -> tuple[int, int | None, int]:
    """Return (major type, argument or None for an indefinite length, offset after the head); RFC 8949 §3."""
    initial = _byte(data, at)
    major, info = initial >> 5, initial & 0x1F
    if major == _TAG or (major == _SIMPLE and info not in _LITERALS):
        raise DocumentFormatError("CBOR tag, float or simple value")
    if info < 24:
        return major, info, at + 1
    if info == _INDEFINITE and major in (_BYTES, _TEXT, _ARRAY, _MAP):
        return major, None, at + 1
    if info > 27:
        raise DocumentFormatError("CBOR head is not well formed")
    end = at + 1 + (1 << (info - 24))
    if end > len(data):
        raise DocumentFormatError("CBOR is cut short")
    return major, int.from_bytes(data[at + 1 : end], "big"), end


def _byte(data: bytes, at: int) -> int:
    if at >= len(data):
        raise DocumentFormatError("CBOR is cut short")
    return data[at]
