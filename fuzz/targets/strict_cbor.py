"""The CBOR subset of docs/spec.md §0: what is accepted is the one encoding of its value."""

from __future__ import annotations

from fuzz.target import Target
from fuzz.values import cbor_mutation
from mrgc.errors import FormatError
from mrgc.wire import strict_cbor


def check(data: bytes) -> bool:
    """Decode as headers are decoded, and as payloads are."""
    plain, with_booleans = _decode(data, booleans=False), _decode(data, booleans=True)
    assert plain is None or plain == with_booleans
    return with_booleans is not None


def _decode(data: bytes, *, booleans: bool) -> list[object] | None:
    try:
        value = strict_cbor.decode(data, booleans=booleans)
    except FormatError:
        return None
    assert strict_cbor.encode(value) == data
    return [value]


def seeds() -> dict[str, bytes]:
    """Values of every kind, and what the subset leaves out."""
    return {
        "map": strict_cbor.encode({"b": [1, 24, 256, 65_536, 1 << 32], "a": {"c": b"\x00\x01"}, "text": "é"}),
        "boolean": strict_cbor.encode({"truncate": True}),
        "deepest": strict_cbor.encode([[[[1]]]]),
        "too-deep": strict_cbor.encode([[[[[]]]]]),
        "empty-map": b"\xa0",
        "float": bytes.fromhex("f93c00"),
        "indefinite": bytes.fromhex("9f01ff"),
        "not-minimal": bytes.fromhex("1801"),
        "out-of-order": bytes.fromhex("a2616201616102"),
        "duplicate-key": bytes.fromhex("a2616101616102"),
        "tag-bignum": bytes.fromhex("c24101"),
        "tag-regular-expression": bytes.fromhex("d8236428612b29"),
        "tag-mime": bytes.fromhex("d82463613a62"),
        "tag-cycle": bytes.fromhex("d81c81d81d00"),
        "huge-array": bytes.fromhex("9b7fffffffffffffff"),
        "huge-text": bytes.fromhex("7affffffff"),
        "bad-utf8": bytes.fromhex("63eda080"),
    }


TARGET = Target(check, seeds, cbor_mutation)
