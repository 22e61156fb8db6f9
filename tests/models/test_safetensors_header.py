"""A safetensors header describes exactly its data, or the file is refused before anything is allocated for it."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrgc.errors import ConfigError
from tests.models.hostile import SOUND
from tests.models.hostile import safetensors as laid_out
from worker.models.safetensors_header import MAX_HEADER_BYTES, MAX_TENSORS, TensorEntry, read_header


def read(content: bytes) -> tuple[TensorEntry, ...]:
    """Judge a file's bytes."""
    return read_header(io.BytesIO(content), file_bytes=len(content), name="w.safetensors")


def entry(**changes: Any) -> dict[str, Any]:
    """Describe one tensor of four bytes, changed."""
    return {"a": SOUND | changes}


BOMBS: dict[str, bytes] = {
    "nothing": b"",
    "no header": bytes(8),
    "a length only": bytes([255] * 8),
    "a header beyond the end": laid_out(entry(), bytes(4), length=1 << 40),
    "a header one byte too long": laid_out(entry(), length=len(json.dumps(entry())) + 1),
    "a header over the cap": laid_out(b"{" + b" " * MAX_HEADER_BYTES + b"}"),
    "a header of millions of values": laid_out(b'{"a": [' + b"1," * (MAX_HEADER_BYTES // 2 - 8) + b"1]}"),
    "too many tensors": laid_out(
        {f"{n}": {**SOUND, "shape": [0], "data_offsets": [0, 0]} for n in range(MAX_TENSORS + 1)}
    ),
    "deep nesting": laid_out(b"[" * 9 + b"]" * 9),
    "a name twice": laid_out(b'{"a": %s, "a": %s}' % ((json.dumps(SOUND).encode(),) * 2), bytes(4)),
    "an array": laid_out([SOUND], bytes(4)),
    "metadata that is no text": laid_out({"__metadata__": {"a": 1}, **entry()}, bytes(4)),
    "metadata that is no map": laid_out({"__metadata__": ["a"], **entry()}, bytes(4)),
    "another key": laid_out(entry(extra=1), bytes(4)),
    "no offsets": laid_out({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "an unknown dtype": laid_out(entry(dtype="OBJECT"), bytes(4)),
    "a dtype of another type": laid_out(entry(dtype=["F32"]), bytes(4)),
    "a shape of another type": laid_out(entry(shape=1), bytes(4)),
    "a negative length": laid_out(entry(shape=[-1]), bytes(4)),
    "two negative lengths": laid_out(entry(shape=[-1, -1]), bytes(4)),
    "a fraction for a length": laid_out(entry(shape=[1.0]), bytes(4)),
    "true for a length": laid_out(entry(shape=[True]), bytes(4)),
    "a rank of nine": laid_out(entry(shape=[1] * 9), bytes(4)),
    "lengths whose product overflows": laid_out(entry(shape=[1 << 32, 1 << 32]), bytes(4)),
    "a shape larger than its bytes": laid_out(entry(shape=[1 << 30]), bytes(4)),
    "offsets before the data": laid_out(entry(data_offsets=[-4, 0]), bytes(4)),
    "offsets behind the file": laid_out(entry(data_offsets=[4, 8]), bytes(4)),
    "offsets in reverse": laid_out(entry(data_offsets=[4, 0]), bytes(4)),
    "three offsets": laid_out(entry(data_offsets=[0, 2, 4]), bytes(4)),
    "overlapping tensors": laid_out({**entry(), "b": SOUND}, bytes(4)),
    "partly overlapping tensors": laid_out({**entry(), "b": {**SOUND, "data_offsets": [2, 6]}}, bytes(6)),
    "a gap before the first": laid_out(entry(data_offsets=[4, 8]), bytes(8)),
    "a gap between two": laid_out({**entry(), "b": {**SOUND, "data_offsets": [8, 12]}}, bytes(12)),
    "bytes behind the last": laid_out(entry(), bytes(5)),
    "bytes missing": laid_out(entry(), bytes(3)),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_header_that_lies_is_refused(bomb: str) -> None:
    """Every lie about length, form, type or place is noticed by its header alone."""
    with pytest.raises(ConfigError, match=r"^w\.safetensors is not a safetensors file: "):
        read(BOMBS[bomb])


def test_the_data_is_not_read() -> None:
    """A survey of a folder costs its headers, not its weights."""
    content = laid_out(entry(shape=[1024], data_offsets=[0, 4096]), bytes(4096))
    file = io.BytesIO(content)
    read_header(file, file_bytes=len(content), name="w.safetensors")
    assert file.tell() == len(content) - 4096


TENSORS = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.tuples(
        st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]),
        st.lists(st.integers(0, 3), max_size=4),
    ),
    max_size=5,
)


@given(TENSORS)
def test_what_the_library_writes_is_read_back(tensors: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    """Names, shapes and sizes are those that safetensors itself would find."""
    made = {name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in tensors.items()}
    found = read(safetensors.torch.save(made, metadata={"format": "pt"}))
    assert {each.name: (each.shape, each.end - each.begin) for each in found} == {
        name: (tuple(tensor.shape), tensor.nbytes) for name, tensor in made.items()
    }


@given(st.binary(max_size=200), st.integers(0, 200), st.integers(0, 255))
def test_any_bytes_are_judged_or_refused(noise: bytes, place: int, value: int) -> None:
    """Nothing but ConfigError comes out, and what is accepted the library reads as well."""
    sound = bytearray(laid_out({**entry(), "b": {**SOUND, "data_offsets": [4, 8]}}, bytes(8)))
    sound[place % len(sound)] = value
    for content in (noise, bytes(sound)):
        try:
            found = read(content)
        except ConfigError:
            continue
        assert {each.name for each in found} == safetensors.torch.load(content).keys()
