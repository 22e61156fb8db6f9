"""Result bodies as the tenant reads them (docs/spec.md §3), JSON and safetensors: what a host may make of them."""

from __future__ import annotations

import json
import struct
from random import Random
from typing import Any

from fuzz.target import MutateBytes, Target
from fuzz.targets import strict_json
from mrgc.answers import Answers, read_answers
from mrgc.errors import FormatError
from mrgc.wire.headers import JSON_TYPE, SAFETENSORS_TYPE


def check(data: bytes) -> bool:
    """Read one body; the first byte says of which type."""
    try:
        found = read_answers(data[1:], SAFETENSORS_TYPE if data[:1] == b"\x00" else JSON_TYPE)
    except FormatError:
        return False
    kinds = [rows for rows in (found.embeddings, found.scores, found.offsets) if rows]
    assert len({len(rows) for rows in kinds}) <= 1
    assert all(type(label) is str for label in found.labels)
    _ensure_best(found)
    return True


def _ensure_best(found: Answers) -> None:
    try:
        best = found.best()
    except FormatError:
        return
    assert [row is None for row in best] == [row is None for row in found.scores]
    for pair, row in zip(best, found.scores, strict=True):
        assert pair is None or (pair[0] in found.labels and pair[1] in row)


def _tensors(data: bytes, metadata: dict[str, str] | None = None, **tensors: Any) -> bytes:
    header: dict[str, Any] = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        for name, (dtype, shape, offsets) in tensors.items()
    }
    if metadata is not None:
        header["__metadata__"] = metadata
    text = json.dumps(header).encode()
    return b"\x00" + struct.pack("<Q", len(text)) + text + data


def seeds() -> dict[str, bytes]:
    """Each form of docs/spec.md §3, and what none of them is."""
    failed = {"errors": '[{"index": 1, "code": "input_invalid"}]'}
    rows = {"scores": ("F32", [3, 2], [0, 24]), "lengths": ("U32", [2], [24, 32]), "offsets": ("U32", [3, 2], [32, 56])}
    return {
        "json-embeddings": b'\x01{"embeddings": [[0.5, -1e-3], null], "errors": [{"index": 1, "code": "x"}]}',
        "json-scores": b'\x01{"labels": ["a", "b"], "scores": [[0.25, 0.75]], "errors": []}',
        "json-tokens": b'\x01{"labels": ["a"], "scores": [[[1]], null], "offsets": [[[0, 4]], null], "errors": []}',
        "json-lengths-differ": b'\x01{"scores": [[1]], "offsets": [], "errors": []}',
        "json-unknown-member": b'\x01{"texts": ["a"], "errors": []}',
        "tensor-embeddings": _tensors(bytes(16), failed, embeddings=("F32", [2, 2], [0, 16])),
        "tensor-scores": _tensors(bytes(8), {"labels": '["a", "b"]'}, scores=("F32", [1, 2], [0, 8])),
        "tensor-tokens": _tensors(bytes(24) + struct.pack("<2I", 1, 2) + bytes(24), {"labels": '["a", "b"]'}, **rows),
        "tensor-lengths-differ": _tensors(bytes(56), None, **rows),
        "tensor-outside": _tensors(bytes(4), scores=("F32", [1, 2], [0, 8])),
        "tensor-enormous": _tensors(b"", scores=("F32", [1 << 40, 1 << 40], [0, 1 << 82])),
        "tensor-header-outside": b"\x00" + b"\xff" * 16,
        "nothing": b"",
    }


def mutate(data: bytes, random: Random, mutate_bytes: MutateBytes) -> bytes:
    """Change one value of the JSON text or of the tensors' header, or any byte."""
    if random.randrange(4) == 0 or len(data) < 9:
        return mutate_bytes(data)
    if data[:1] != b"\x00":
        return data[:1] + strict_json.mutate(data[1:], random, mutate_bytes)
    end = 9 + min(int.from_bytes(data[1:9], "little"), len(data))
    text = strict_json.mutate(data[9:end], random, mutate_bytes)
    return b"\x00" + struct.pack("<Q", len(text)) + text + data[end:]


TARGET = Target(check, seeds, mutate)
