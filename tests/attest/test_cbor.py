"""The CBOR reader of attestation documents."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrgc.attest import cbor
from mrgc.errors import DocumentFormatError

SCALARS: Final = st.one_of(
    st.integers(-(2**64), 2**64 - 1), st.binary(max_size=300), st.text(max_size=60), st.none(), st.booleans()
)
KEYS: Final = st.one_of(st.integers(-(2**64), 2**64 - 1), st.text(max_size=10))
VALUES: Final[st.SearchStrategy[Any]] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=20
)


def depth(value: Any) -> int:
    """Return how many containers lie around the deepest leaf, the value itself included."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


@given(VALUES)
def test_what_the_subset_holds_is_read_back(value: Any) -> None:
    """Any value of the accepted kinds within the depth is read back, and a deeper one is refused."""
    data = cbor2.dumps(value)
    if depth(value) <= cbor.MAX_DEPTH:
        assert cbor.decode(data) == value
    else:
        with pytest.raises(DocumentFormatError):
            cbor.decode(data)


@pytest.mark.parametrize("head", [b"\x81", b"\x9f", b"\xa1\x00"], ids=["list", "endless list", "map"])
def test_the_depth_ends_where_it_says(head: bytes) -> None:
    """So many containers around a leaf are read, and one more is refused."""
    end = b"\xff" if head == b"\x9f" else b""
    cbor.decode(head * cbor.MAX_DEPTH + b"\0" + end * cbor.MAX_DEPTH)
    with pytest.raises(DocumentFormatError, match="nested"):
        cbor.decode(head * (cbor.MAX_DEPTH + 1) + b"\0" + end * (cbor.MAX_DEPTH + 1))


@given(VALUES.filter(lambda value: depth(value) <= cbor.MAX_DEPTH), st.binary(min_size=1, max_size=5))
def test_one_item_and_nothing_after_it(value: Any, rest: bytes) -> None:
    """Trailing bytes, and every proper prefix, are refused."""
    data = cbor2.dumps(value)
    for wrong in (data + rest, *(data[:end] for end in range(len(data)))):
        with pytest.raises(DocumentFormatError):
            cbor.decode(wrong)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_the_one_error(data: bytes) -> None:
    """No input makes the reader raise anything but DocumentFormatError."""
    with suppress(DocumentFormatError):
        cbor.decode(data)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        ("bf6161016162 02ff", {"a": 1, "b": 2}),
        ("9f0102ff", [1, 2]),
        ("5f420102 4103ff", b"\x01\x02\x03"),
        ("7f61616162ff", "ab"),
        ("5fff", b""),
        ("1800", 0),
    ],
)
def test_indefinite_lengths_and_long_heads_are_read(data: str, value: Any) -> None:
    """Nitro's newer firmware writes indefinite lengths, so they are data, not an attack."""
    assert cbor.decode(bytes.fromhex(data)) == value


@pytest.mark.parametrize(
    "data",
    [
        "",
        "ff",
        "9f01",
        "bf6161ff",
        "5f6161ff",
        "5f5f4101ffff",
        "7f4101ff",
        "1c",
        "1f",
        "3f",
        "5c",
        "c000",
        "c100",
        "c1c100",
        "d81800",
        "f5f5",
        "f7",
        "f0",
        "f820",
        "f90000",
        "fa00000000",
        "fb0000000000000000",
        "a201000100",
        "a2016001f6",
        "bf6161006161 00ff",
        "a16161a2616100616100",
        "a1800000",
        "62c328",
        "9bffffffffffffffff",
        "bbffffffffffffffff",
        "5bffffffffffffffff",
        "8181818181",
    ],
)
def test_everything_else_is_refused(data: str) -> None:
    """Tags, floats, odd simple values, duplicates, bad chunks, lengths beyond the input and unhashable keys."""
    with pytest.raises(DocumentFormatError):
        cbor.decode(bytes.fromhex(data))
