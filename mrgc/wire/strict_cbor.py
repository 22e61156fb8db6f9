"""The deterministic CBOR subset of docs/spec.md §0, and nothing beyond it.

One encoding per value (RFC 8949 §4.2.1), so a reader can check form by re-encoding its parse. Attestation
documents do not follow this subset; `mrgc.attest` has its own reader.

May import: the standard library, cbor2, mrgc.errors.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, Never

import cbor2

from mrgc.errors import FormatError

Buffer = bytes | bytearray | memoryview

MAX_DEPTH: Final = 4  #: docs/spec.md §0; the outer map counts as 1.
_UINT_END: Final = 1 << 64  #: RFC 8949 §3.1: a larger integer would need a tag, which the subset has not.

_CONTAINERS: Final = (dict, list, tuple)
_TEXTS: Final = (bytes, str)


def _refuse_tag(*_: object) -> Never:
    raise ValueError("tag")


class _EveryTag(dict[int, Any]):
    """Leads every tag to its refusal.

    Left alone, cbor2 builds what a tag asks for before we can judge it: tag 35 compiles a regular expression, seconds
    of work and megabytes in `re`'s cache for one frame header of a stranger, and tag 36 parses a MIME message.
    """

    def __missing__(self, tag: int) -> Any:
        return _refuse_tag


_TAGS: Final = _EveryTag()


def encode(value: Any) -> bytes:
    """Encode a value of the subset.

    Args:
        value: dict with text keys, list, tuple, bytes-like, str, bool or int in [0, 2^64).

    Returns:
        The one encoding that `decode` accepts.
    """
    return cbor2.dumps(_sorted(value))


def decode(data: Buffer, *, max_depth: int = MAX_DEPTH, booleans: bool = False) -> Any:
    """Decode exactly one item and refuse every encoding but the canonical one.

    Args:
        data: one encoded item. The caller caps its length.
        max_depth: nesting of maps and arrays, the outermost counting as 1.
        booleans: accept true and false (docs/spec.md §0: in payloads only).

    Returns:
        dict, list, bytes, str, int, or bool if asked for.

    Raises:
        FormatError: the bytes are not the canonical encoding of one item of the subset.
    """
    raw = bytes(data)
    try:
        value = cbor2.loads(
            raw,
            max_depth=max_depth,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            semantic_decoders=_TAGS,
            strict_hashable_types=True,  # hashes of integers and arrays can be predicted, and made to collide
        )
        _ensure_subset(value, max_depth, booleans=booleans)
        # A dict keeps the received order, so plain re-encoding reproduces the input if and only if every length
        # and integer was minimal and nothing trails; _ensure_subset has judged the order itself.
        canonical = cbor2.dumps(value) == raw
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise FormatError("not one cbor item of the allowed subset") from error
    if not canonical:
        raise FormatError("cbor is not in its canonical encoding")
    return value


def _sorted(value: Any) -> Any:
    kind = type(value)
    if kind is dict:
        given = tuple(value)
        names = _in_order(given)
        for item in value.values():
            if type(item) in _CONTAINERS:
                return {name: _sorted(value[name]) for name in names}
        return value if names == given else {name: value[name] for name in names}
    if kind is list or kind is tuple:
        return [_sorted(item) if type(item) in _CONTAINERS else item for item in value]
    return value


@lru_cache(maxsize=256)
def _in_order(keys: tuple[str, ...]) -> tuple[str, ...]:
    # Bytewise order of the encodings = by encoded length, then by bytes: the head of a shorter text sorts first.
    # Remembered, because a writer has few shapes of map; a reader, whose maps are of anybody's making, does without.
    return tuple(sorted(keys, key=lambda key: (len(key.encode()), key.encode())))


def _ensure_subset(value: Any, depth: int, *, booleans: bool) -> None:
    kind = type(value)
    if kind is dict or kind is list:
        if depth < 1:
            raise FormatError("cbor nested too deeply")
        if kind is dict:
            _ensure_ordered_keys(value)
        for item in value.values() if kind is dict else value:
            # Most are one of these: a call for each would double the price of a header.
            if type(item) not in _TEXTS and not (type(item) is int and 0 <= item < _UINT_END):
                _ensure_subset(item, depth - 1, booleans=booleans)
    elif kind is int:
        if not 0 <= value < _UINT_END:
            raise FormatError("cbor integer outside 0..2^64-1")
    elif kind is not bytes and kind is not str and not (booleans and kind is bool):
        raise FormatError("cbor type outside the allowed subset")


def _ensure_ordered_keys(fields: dict[Any, Any]) -> None:
    size, previous = -1, ""
    for key in fields:
        if type(key) is not str:
            raise FormatError("cbor map key is not text")
        length = len(key) if key.isascii() else len(key.encode())
        # UTF-8 keeps the order of code points, which is the order of Python's texts.
        if length < size or (length == size and key <= previous):
            raise FormatError("cbor map keys are not in canonical order")
        size, previous = length, key
