"""Mutation of BER structures: one element changed, every length around it right again.

Called by `fuzz.targets.cms`. May import: the standard library, fuzz.target. It reads leniently and checks nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final, NamedTuple

from fuzz.target import MutateBytes

_CONSTRUCTED: Final = 0x20
_INDEFINITE: Final = 0x80
_END_OF_CONTENTS: Final = b"\x00\x00"
_MAX_DEPTH: Final = 64
_TAGS: Final = (0x02, 0x04, 0x05, 0x06, 0x24, 0x30, 0x31, 0x80, 0xA0, 0xA1)


class _Element(NamedTuple):
    tag: int
    indefinite: bool
    #: Elements if the tag is constructed.
    content: bytes | list[_Element]


def mutation(data: bytes, random: Random, mutate: MutateBytes) -> bytes:
    """Change one element of a structure, or any byte."""
    elements, end = _read(data, 0, len(data), _MAX_DEPTH)
    places = list(_places(elements))
    if not places or random.randrange(4) == 0:
        return mutate(data)
    siblings, index = random.choice(places)
    match random.randrange(6):
        case 0:
            del siblings[index]
        case 1:
            siblings.insert(index, random.choice(siblings))
        case 2:
            siblings[index] = siblings[index]._replace(tag=random.choice(_TAGS))
        case 3:
            siblings[index] = siblings[index]._replace(indefinite=not siblings[index].indefinite)
        case _:
            content = siblings[index].content
            plain = content if isinstance(content, bytes) else _encoded(content)
            siblings[index] = siblings[index]._replace(content=mutate(plain))
    return _encoded(elements) + data[end:]


def _read(data: bytes, at: int, end: int, depth: int) -> tuple[list[_Element], int]:
    """Return the elements from `at` on, as far as they can be read, and where the first unread byte is."""
    elements: list[_Element] = []
    while depth and at + 2 <= end and data[at : at + 2] != _END_OF_CONTENTS:
        tag, length, start = data[at], data[at + 1], at + 2
        content: bytes | list[_Element]
        if length == _INDEFINITE:
            content, stop = _read(data, start, end, depth - 1)
            elements.append(_Element(tag, True, content))
            at = stop + len(_END_OF_CONTENTS)
            continue
        if length > _INDEFINITE:
            start += length - _INDEFINITE
            length = int.from_bytes(data[at + 2 : start], "big")
        if start + length > end:
            break
        content, stop = data[start : start + length], start + length
        if tag & _CONSTRUCTED:
            inside, read_to = _read(data, start, stop, depth - 1)
            content = inside if read_to == stop else content
        elements.append(_Element(tag, False, content))
        at = stop
    return elements, at


def _places(elements: list[_Element]) -> Iterator[tuple[list[_Element], int]]:
    for index, element in enumerate(elements):
        yield elements, index
        if isinstance(element.content, list):
            yield from _places(element.content)


def _encoded(elements: list[_Element]) -> bytes:
    return b"".join(map(_encoded_one, elements))


def _encoded_one(element: _Element) -> bytes:
    content = element.content if isinstance(element.content, bytes) else _encoded(element.content)
    if element.indefinite:
        return bytes([element.tag, _INDEFINITE]) + content + _END_OF_CONTENTS
    if len(content) < _INDEFINITE:
        return bytes([element.tag, len(content)]) + content
    size = (len(content).bit_length() + 7) // 8
    return bytes([element.tag, _INDEFINITE | size]) + len(content).to_bytes(size, "big") + content
