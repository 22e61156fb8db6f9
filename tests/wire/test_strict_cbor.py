"""The CBOR subset: one encoding per value, everything else refused."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrgc.errors import FormatError
from mrgc.wire import strict_cbor

scalars = st.integers(0, 2**64 - 1) | st.binary(max_size=40) | st.text(max_size=40)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=30), inner, max_size=4),
    max_leaves=12,
)


@given(value=values)
def test_decoding_undoes_encoding_and_agrees_with_cbor2s_canonical_form(value: Any) -> None:
    """Every value of the subset has one encoding, the one of RFC 8949 §4.2.1."""
    encoded = strict_cbor.encode(value)
    assert encoded == cbor2.dumps(value, canonical=True)
    assert strict_cbor.decode(encoded, max_depth=16) == value


@given(noise=st.binary(max_size=60))
def test_any_accepted_bytes_are_their_own_encoding(noise: bytes) -> None:
    """Whatever decode accepts re-encodes to the same bytes; all else is a FormatError."""
    try:
        value = strict_cbor.decode(noise)
    except FormatError:
        return
    assert strict_cbor.encode(value) == noise


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\x18\x01",  # 1 in two bytes
        b"\x00\x00",  # trailing byte
        b"\x20",  # -1
        b"\xf6",  # null
        b"\xf7",  # undefined
        b"\xf5",  # true, outside payloads
        b"\xf9\x3c\x00",  # 1.0
        b"\xc2\x41\x01",  # bignum 1
        b"\xc2\x49\x01" + bytes(8),  # bignum 2^64
        b"\xd8\x1c\x81\xd8\x1d\x00",  # a list that shares a reference to itself
        b"\xd9\x01\x00\x81\x61a",  # string reference namespace
        b"\xe0",  # simple value 0
        b"\x5f\x41a\xff",  # indefinite bytes
        b"\x9f\xff",  # indefinite array
        b"\xbf\xff",  # indefinite map
        b"\xa2\x61b\x00\x61a\x00",  # keys out of order
        b"\xa2\x62aa\x00\x61b\x00",  # the longer key first
        b"\xa2\x61a\x00\x61a\x01",  # duplicate key
        b"\xa1\x00\x00",  # integer key
        b"\xa1\x41a\x00",  # bytes key
        b"\x61\xff",  # invalid UTF-8
        b"\x63\xed\xa0\x80",  # a surrogate in UTF-8
        b"\x5b\x00\x00\x00\xff\xff\xff\xff\xff",  # a declared length of a terabyte
        b"\x9b\x00\x00\x00\xff\xff\xff\xff\xff",
        b"\x81" * 5 + b"\x00",  # depth 5
        b"\x81" * 5_000,
    ],
    ids=lambda encoded: encoded[:12].hex() or "empty",
)
def test_bytes_outside_the_subset_are_refused(encoded: bytes) -> None:
    """Each encoding that docs/spec.md §0 forbids is a FormatError."""
    with pytest.raises(FormatError):
        strict_cbor.decode(encoded)


def test_true_and_false_pass_only_where_payloads_ask_for_them() -> None:
    """Booleans are for payloads."""
    assert strict_cbor.decode(b"\xa1\x61a\xf5", booleans=True) == {"a": True}
    with pytest.raises(FormatError):
        strict_cbor.decode(b"\xa1\x61a\xf5")


def test_depth_counts_the_outermost_map_as_one() -> None:
    """Four levels pass by default and five do not."""
    assert strict_cbor.decode(strict_cbor.encode([[[[]]]])) == [[[[]]]]
    with pytest.raises(FormatError):
        strict_cbor.decode(strict_cbor.encode([[[[[]]]]]))
