"""Mutation of values: what CBOR or JSON decodes to, changed in one place and encoded again.

A mutant made so is well formed at the outer layers, so that it reaches the rules about types, lengths and keys, which
mutated bytes seldom do. Called by `fuzz.targets`. May import: the standard library, cbor2, fuzz.target, mrgc.wire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any, Final, Never

import cbor2

from fuzz.target import MutateBytes
from mrgc.wire import strict_cbor

#: Values of every kind that a parser may meet where it expects another one.
ODD_VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, 1, -1, 23, 24, 255, 256, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1, 1.5,
    float("nan"), b"", b"\x00", "", "\x00", "\N{SNOWMAN}", [], {}, [[[[]]]], {"a": {"a": {"a": {"a": {}}}}},
)  # fmt: skip
#: One mutant in so many is made of bytes, not of values.
_BYTES_SHARE: Final = 4


def _refuse_tag(*_: object) -> Never:
    raise ValueError("tag")


class _NoTags(dict[int, Any]):
    """Leads every tag to a refusal: values with tags may hold themselves, and are mutated as bytes."""

    def __missing__(self, tag: int) -> Any:
        return _refuse_tag


_NO_TAGS: Final = _NoTags()


def cbor_mutation(data: bytes, random: Random, mutate: MutateBytes) -> bytes:
    """Change one place of a CBOR item: usually one value of it, at times its bytes."""
    if random.randrange(_BYTES_SHARE) == 0:
        return mutate(data)
    try:
        value = cbor2.loads(data, semantic_decoders=_NO_TAGS)
        return encode(mutated(value, random, mutate))
    except (cbor2.CBORError, ValueError, TypeError, AttributeError, RecursionError):
        return mutate(data)


def encode(value: Any) -> bytes:
    """Encode as docs/spec.md §0 wants it, if the value can be; otherwise as it comes."""
    try:
        return strict_cbor.encode(value)
    except (cbor2.CBORError, AttributeError, TypeError):
        return cbor2.dumps(value)


def mutated(value: Any, random: Random, mutate: MutateBytes) -> Any:
    """Return a copy of a tree of values that differs in one node."""
    return _changed(value, random.choice(list(_paths(value))), random, mutate)


def _paths(value: Any) -> Iterator[tuple[Any, ...]]:
    yield ()
    if isinstance(value, dict):
        for key, child in value.items():
            yield from ((key, *rest) for rest in _paths(child))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from ((index, *rest) for rest in _paths(child))


def _changed(value: Any, path: tuple[Any, ...], random: Random, mutate: MutateBytes) -> Any:
    if not path:
        return _another(value, random, mutate)
    head, *rest = path
    copy = value.copy()
    copy[head] = _changed(value[head], tuple(rest), random, mutate)
    return copy


def _another(value: Any, random: Random, mutate: MutateBytes) -> Any:
    make = _MAKERS.get(type(value))
    if make is None or random.randrange(8) == 0:
        return random.choice(ODD_VALUES)
    return make(value, random, mutate)


def _another_bytes(value: bytes, random: Random, mutate: MutateBytes) -> bytes:
    # As often as not of the same length, which most fields fix.
    other = mutate(value)
    return other if random.randrange(2) else (other + value)[: len(value)]


def _another_text(value: str, _random: Random, mutate: MutateBytes) -> str:
    return mutate(value.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")


def _another_int(value: int, random: Random, _mutate: MutateBytes) -> int:
    return random.choice((value + 1, value - 1, value ^ (1 << random.randrange(64))))


def _another_list(items: list[Any], random: Random, _mutate: MutateBytes) -> list[Any]:
    copy, at = list(items), random.randint(0, len(items))
    match random.randrange(3):
        case 0 if copy:
            del copy[at - 1]
        case 1 if copy:
            copy.insert(at, random.choice(copy))
        case _:
            copy.insert(at, random.choice(ODD_VALUES))
    return copy


def _another_dict(fields: dict[Any, Any], random: Random, mutate: MutateBytes) -> dict[Any, Any]:
    copy = dict(fields)
    key = random.choice(list(copy)) if copy else ""
    match random.randrange(4):
        case 0:
            copy.pop(key, None)
        case 1:
            copy[_another(key, random, mutate)] = copy.pop(key, None)
        case 2:
            copy[mutate(b"new").decode("utf-8", "replace")] = random.choice(ODD_VALUES)
        case _ if copy:
            copy[key] = copy[random.choice(list(copy))]
    return copy


#: By the type of the value that is replaced.
_MAKERS: Final[dict[type, Callable[[Any, Random, MutateBytes], Any]]] = {
    bytes: _another_bytes,
    str: _another_text,
    int: _another_int,
    list: _another_list,
    dict: _another_dict,
}
