"""Headers of weight files: bytes of whoever made the model, judged before a library allocates what they say."""

from __future__ import annotations

import io
import json
from random import Random
from typing import Any

import safetensors

from fuzz.target import MutateBytes, Target
from fuzz.targets import strict_json
from mrgc.errors import ConfigError
from worker.models.safetensors_header import ITEM_BYTES, LENGTH_BYTES, TensorEntry, read_header


def check(data: bytes) -> bool:
    """Judge one file; the library itself must find the same tensors in what is accepted, or refuse it."""
    file = io.BytesIO(data)
    try:
        entries = read_header(file, file_bytes=len(data), name="model.safetensors")
    except ConfigError:
        return False
    start = file.tell()
    # Each byte after the header belongs to exactly one tensor, so the file is as long as the memory that it takes.
    assert [entry.begin for entry in entries] == [0, *(entry.end for entry in entries)][: len(entries)]
    assert start + sum(entry.elements * ITEM_BYTES[entry.dtype] for entry in entries) == len(data)
    try:
        found = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError:
        return True
    assert found.keys() == {entry.name for entry in entries}
    assert all(_is_same(found[entry.name], entry, data[start:]) for entry in entries)
    return True


def _is_same(found: dict[str, Any], entry: TensorEntry, tensors: bytes) -> bool:
    return tuple(found["shape"]) == entry.shape and bytes(found["data"]) == tensors[entry.begin : entry.end]


def _file(header: object, tensors: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(LENGTH_BYTES, "little") + text + tensors


def seeds() -> dict[str, bytes]:
    """Files that a folder may hold, and files that say more than they have."""
    one = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    two = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}
    empty = {"dtype": "I64", "shape": [0, 7], "data_offsets": [24, 24]}
    return {
        "two-tensors": _file({"a": one, "b.weight": two}, bytes(range(32))),
        "in-another-order": _file({"b": two, "a": one}, bytes(32)),
        "metadata": _file({"__metadata__": {"format": "pt"}, "a": one}, bytes(24)),
        "a-tensor-of-nothing": _file({"a": one, "e": empty, "b": two}, bytes(32)),
        "a-number": _file({"n": {"dtype": "U8", "shape": [], "data_offsets": [0, 1]}}, b"x"),
        "no-tensors": _file({}),
        "padded": _file(json.dumps({"a": one}).encode() + b"   ", bytes(24)),
        "gap": _file({"a": one, "b": two | {"data_offsets": [25, 33]}}, bytes(33)),
        "overlap": _file({"a": one, "b": two | {"data_offsets": [16, 24]}}, bytes(24)),
        "data-of-nobody": _file({"a": one}, bytes(25)),
        "larger-than-its-bytes": _file({"a": one | {"shape": [1 << 40, 1 << 40]}}, bytes(24)),
        "name-twice": _file(b'{"a": %(a)s, "a": %(a)s}' % {b"a": json.dumps(one).encode()}, bytes(24)),
        "header-beyond-the-end": (1 << 62).to_bytes(LENGTH_BYTES, "little") + b"{}",
        "nothing": b"",
    }


def mutate(data: bytes, random: Random, mutate_bytes: MutateBytes) -> bytes:
    """Change the header and state its new length, or change any byte."""
    end = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    if end > len(data) or random.randrange(4) == 0:
        return mutate_bytes(data)
    return _file(strict_json.mutate(data[LENGTH_BYTES:end], random, mutate_bytes), data[end:])


TARGET = Target(check, seeds, mutate)
