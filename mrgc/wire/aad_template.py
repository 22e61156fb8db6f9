"""The AAD of a sealed object with holes: read and written without CBOR.

Two AADs that are equal outside their holes hold equal fields outside them, because a hole has one length and the head
before a byte string says that length. So whoever has checked one AAD in full has checked all of its template but what
is in the holes: byte strings, of which every one of its length is legal, and numbers, which their reader checks.

Called by `mrgc.wire.job_forms` and `mrgc.wire.result_forms`. May import: the standard library, mrgc.wire.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from mrgc.wire import strict_cbor
from mrgc.wire.sealed import PREFIX

#: Of the prefix, only the body's length differs between AADs of equal length: the last four bytes.
_FIXED_PREFIX_BYTES: Final = 8
#: Length of an encoded uint → the head that it has, and its smallest canonical value (RFC 8949 §4.2.1).
_UINT_HEADS: Final = {2: (0x18, 24), 3: (0x19, 1 << 8), 5: (0x1A, 1 << 16), 9: (0x1B, 1 << 32)}

#: How to unpack an AAD into pieces and holes by turns, and the pieces.
_Cut = tuple[struct.Struct, tuple[bytes, ...]]


class AadTemplate:
    """One AAD, cut at its holes.

    Args:
        aad: the first 12+H bytes of an object, which the caller has checked.
        holes: names of the header fields that differ, in canonical order. The body's length is a hole before them.
    """

    def __init__(self, aad: bytes, holes: tuple[str, ...]) -> None:
        self.size = len(aad)
        self._aad = aad
        self._holes = holes
        self._cut: _Cut | None = None

    def read(self, aad: bytes) -> tuple[bytes, ...] | None:
        """Return what the holes of an AAD hold, the body's length first; None if it differs anywhere else."""
        if len(aad) != self.size:
            return None
        layout, pieces = self._cut or self._cut_up()
        cut = layout.unpack(aad)
        return cut[1::2] if cut[::2] == pieces else None

    def write(self, *holes: bytes) -> bytes:
        """Return the AAD with these holes, each of its own length."""
        _, pieces = self._cut or self._cut_up()
        parts = [b""] * (2 * len(holes) + 1)
        parts[::2], parts[1::2] = pieces, holes
        return b"".join(parts)

    def _cut_up(self) -> _Cut:
        # At the first use and not before: there may be as many forms as jobs.
        lengths = [_FIXED_PREFIX_BYTES, PREFIX.size - _FIXED_PREFIX_BYTES]
        piece_start, at = PREFIX.size, PREFIX.size + 1  # A header's map has below 24 entries: its head is one byte.
        for name, value in strict_cbor.decode(self._aad[PREFIX.size :]).items():
            value_start = at + _encoded_bytes(name)
            at = value_start + _encoded_bytes(value)
            if name in self._holes:
                # A byte string keeps its head, which says its length; of a number nothing is fixed but the length.
                hole_start = at - len(value) if type(value) is bytes else value_start
                lengths += [hole_start - piece_start, at - hole_start]
                piece_start = at
        layout = struct.Struct("".join(f"{length}s" for length in (*lengths, at - piece_start)))
        self._cut = cut = layout, layout.unpack(self._aad)[::2]
        return cut


def read_uint(encoded: bytes) -> int:
    """Read one canonical CBOR uint out of a hole; -1 if it is anything else."""
    if len(encoded) == 1:
        return encoded[0] if encoded[0] < 24 else -1
    head, lowest = _UINT_HEADS[len(encoded)]
    value = int.from_bytes(encoded[1:], "big")
    return value if encoded[0] == head and value >= lowest else -1


def _encoded_bytes(value: Any) -> int:
    """Return the length of a value's encoding."""
    if type(value) is bytes:
        return _head_bytes(len(value)) + len(value)
    return _head_bytes(value) if type(value) is int else len(strict_cbor.encode(value))


def _head_bytes(argument: int) -> int:
    if argument < 24:
        return 1
    return max(length for length, (_, lowest) in _UINT_HEADS.items() if argument >= lowest)
