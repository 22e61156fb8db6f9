"""JSON as docs/spec.md §0 allows it: what is accepted means the same to json.loads, and has no name twice."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from fuzz.target import MutateBytes, Target
from fuzz.values import mutated
from mrgc.errors import FormatError
from mrgc.wire import strict_json

_MAX_VALUES = 64


def check(data: bytes) -> bool:
    """Parse one JSON text."""
    try:
        value = strict_json.parse(data, max_values=_MAX_VALUES)
    except FormatError:
        return False
    assert _depth(value) <= strict_json.MAX_DEPTH
    pairs = 0

    def counted(found: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal pairs
        pairs += len(found)
        return dict(found)

    # repr and not ==, which would take 1, 1.0 and true for the same.
    assert repr(json.loads(data.decode(), object_pairs_hook=counted)) == repr(value)
    assert pairs == _names(value)
    _ensure_same_again(value)
    return True


def _ensure_same_again(value: Any) -> None:
    try:
        again = json.dumps(value, allow_nan=False).encode()
    except ValueError:
        return  # 1e999 is a number of JSON, and as a float it is infinite
    assert repr(strict_json.parse(again, max_values=_MAX_VALUES)) == repr(value)


def _depth(value: Any) -> int:
    children = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if children is None else 1 + max(map(_depth, children), default=0)


def _names(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_names, value.values()))
    return sum(map(_names, value)) if isinstance(value, list) else 0


def seeds() -> dict[str, bytes]:
    """Values of every kind, and what the rules refuse."""
    return {
        "payload": b'{"inputs": ["text", "\\u00e9\\ud83d\\ude00"], "parameters": {"truncate": true}}\n',
        "result": b'{"embeddings": [[0.1, -2e-3], null], "errors": [{"index": 1, "code": "input_invalid"}]}',
        "deepest": b"[" * 8 + b"]" * 8,
        "too-deep": b"[" * 9 + b"]" * 9,
        "brackets-in-text": b'"[[[[[[[[[["',
        "escaped-quote": b'["\\"[", "\\\\"]',
        "too-many": b"[" + b"0," * 64 + b"0]",
        "name-twice": b'{"a": 1, "\\u0061": 2}',
        "nan": b"[NaN]",
        "minus-infinity": b"-Infinity",
        "byte-order-mark": b"\xef\xbb\xbf{}",
        "not-utf8": b'"\xff"',
        "long-number": b"1" * 4_301,
        "large-exponent": b"1e999",
        "lone-surrogate": b'"\\ud800"',
        "open-text": b'{"a": "[[[[[[[[[',
        "utf16": "{}".encode("utf-16-le"),
    }


def mutate(data: bytes, random: Random, mutate_bytes: MutateBytes) -> bytes:
    """Change one value, or any byte."""
    if random.randrange(2) == 0:
        return mutate_bytes(data)
    try:
        changed = mutated(json.loads(data), random, mutate_bytes)
        return json.dumps(changed, ensure_ascii=random.random() < 0.5, default=repr).encode("utf-8", "surrogatepass")
    except (ValueError, TypeError, RecursionError):
        return mutate_bytes(data)


TARGET = Target(check, seeds, mutate, max_bytes=4_400)
