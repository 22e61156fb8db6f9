"""The CBOR of attestation documents: what is accepted has no tag, no float and no other value than cbor2 reads."""

from __future__ import annotations

from typing import Any

import cbor2

from fuzz.target import Target
from fuzz.values import cbor_mutation
from mrgc.attest import cbor
from mrgc.errors import DocumentFormatError


def check(data: bytes) -> bool:
    """Decode one item."""
    try:
        value = cbor.decode(data)
    except DocumentFormatError:
        return False
    assert _depth(value) <= cbor.MAX_DEPTH + 1
    assert cbor.decode(cbor2.dumps(value)) == value
    return True


def _depth(value: Any) -> int:
    assert type(value) in (int, bytes, str, list, dict, bool, type(None))
    children = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return 1 + max(map(_depth, children), default=0)


def seeds() -> dict[str, bytes]:
    """Definite and indefinite items, and what only a forger would write."""
    return {
        "map": cbor2.dumps({"a": [1, -1, None, True], 4: b"x", "b": {"c": "d"}}),
        "indefinite": bytes.fromhex("bf61615f41004101ff61629f01ffff"),
        "not-minimal": bytes.fromhex("1b0000000000000001"),
        "out-of-order": bytes.fromhex("a2616201616102"),
        "duplicate-key": bytes.fromhex("a2616101616102"),
        "duplicate-key-not-minimal": bytes.fromhex("a20001180002"),
        "key-one-and-true": bytes.fromhex("a20100f501"),
        "unhashable-key": bytes.fromhex("a18000"),
        "tag": bytes.fromhex("c24101"),
        "float": bytes.fromhex("f93c00"),
        "undefined": bytes.fromhex("f7"),
        "chunk-of-text": bytes.fromhex("5f6161ff"),
        "nested-chunks": bytes.fromhex("5f5f4100ffff"),
        "huge-array": bytes.fromhex("9b7fffffffffffffff"),
        "huge-bytes": bytes.fromhex("5affffffff"),
        "break": b"\xff",
        "trailing": bytes.fromhex("0000"),
        "bad-utf8": bytes.fromhex("61ff"),
    }


TARGET = Target(check, seeds, cbor_mutation)
