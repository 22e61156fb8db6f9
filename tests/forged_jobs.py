"""Sealed jobs whose header somebody rewrote."""

from __future__ import annotations

from typing import Any, Final

from mrgc.wire import strict_cbor
from mrgc.wire.sealed import parse_job

_PREFIX_BYTES: Final = 12


def rewritten(sealed: bytes, **changes: Any) -> bytes:
    """Replace header fields of a job, None removing one, and leave body and tag as they are."""
    parsed = parse_job(sealed)
    fields = parsed.header.to_map() | changes
    header = strict_cbor.encode({name: value for name, value in fields.items() if value is not None})
    lengths = len(header).to_bytes(2, "big") + sealed[8:_PREFIX_BYTES]
    return sealed[:6] + lengths + header + bytes(parsed.ciphertext)
