"""Result bodies as the tenant reads them: what the engine writes, and what a host might put in its place."""

from __future__ import annotations

import json
import struct
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrgc.answers import read_answers
from mrgc.errors import FormatError, InputTooLong
from mrgc.wire.headers import JSON_TYPE, SAFETENSORS_TYPE
from worker.engine import results
from worker.models.answers import EmbeddingAnswer, ScoreAnswer
from worker.models.base import Answer, Tokens
from worker.models.token_answer import TokenAnswer

LABELS: Final = ("joy", "anger")
EITHER_TYPE = pytest.mark.parametrize("accept", [JSON_TYPE, SAFETENSORS_TYPE])


def written(answer: Answer, items: int, accept: str, *, failed: int | None = None) -> bytes:
    """Write a body as the engine does."""
    errors = {} if failed is None else {failed: InputTooLong("long")}
    return bytes(results.build(answer, errors, items=items, accept=accept, max_bytes=1 << 20).data)


@EITHER_TYPE
def test_embeddings_are_read_as_they_were_written(accept: str) -> None:
    """One list per input, None for the one that failed, with its code."""
    answer = EmbeddingAnswer(3, 2)
    answer.put(0, np.array([0.5, -0.25], dtype=np.float32))
    answer.put(2, np.array([0.125, 0.75], dtype=np.float32))
    found = read_answers(written(answer, 3, accept, failed=1), accept)
    assert found.embeddings == [[0.5, -0.25], None, [0.125, 0.75]]
    assert (found.scores, found.labels, found.offsets, found.errors) == ([], [], [], {1: "input_too_long"})
    with pytest.raises(FormatError):
        found.best()


@EITHER_TYPE
def test_scores_are_read_with_their_labels(accept: str) -> None:
    """And the best label of each input is at hand."""
    answer = ScoreAnswer(3, LABELS)
    answer.put(0, np.array([0.25, 0.75], dtype=np.float32))
    answer.put(1, np.array([1.0, 0.0], dtype=np.float32))
    found = read_answers(written(answer, 3, accept, failed=2), accept)
    assert (found.labels, found.scores) == (list(LABELS), [[0.25, 0.75], [1.0, 0.0], None])
    assert found.best() == [("anger", 0.75), ("joy", 1.0), None]


@EITHER_TYPE
def test_token_rows_are_read_input_by_input(accept: str) -> None:
    """However many tokens each has, its scores and its offsets stay together."""
    answer = TokenAnswer(3, LABELS)
    for place, tokens in ((0, 1), (2, 2)):
        offsets = np.arange(2 * tokens, dtype=np.uint32).reshape(tokens, 2)
        answer.expect(place, Tokens(np.zeros(tokens, dtype=np.int32), is_cut=False, offsets=offsets))
        answer.put(place, np.full((tokens, 2), 0.5, dtype=np.float32))
    found = read_answers(written(answer, 3, accept, failed=1), accept)
    assert found.scores == [[[0.5, 0.5]], None, [[0.5, 0.5], [0.5, 0.5]]]
    assert found.offsets == [[[0, 1]], None, [[0, 1], [2, 3]]]
    with pytest.raises(FormatError):
        found.best()


def tensor_file(header: Any, data: bytes = b"") -> bytes:
    """Lay out a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def one(dtype: Any = "F32", shape: Any = (1, 1), offsets: Any = (0, 4), name: str = "scores") -> dict[str, Any]:
    """A header of one tensor."""
    return {name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/octet-stream", b"{}"),
        (JSON_TYPE, b"\xff"),
        (JSON_TYPE, b"[]"),
        (JSON_TYPE, b"{}"),
        (JSON_TYPE, b'{"errors": []}'),
        (JSON_TYPE, b'{"embeddings": 1}'),
        (JSON_TYPE, b'{"embeddings": [], "other": []}'),
        (JSON_TYPE, b'{"scores": [[1]], "labels": [1], "errors": []}'),
        (JSON_TYPE, b'{"scores": [[1]], "offsets": [], "errors": []}'),
        (JSON_TYPE, b'{"scores": [[1]], "errors": [{"index": "0", "code": "x"}]}'),
        (JSON_TYPE, b'{"scores": [[1]], "errors": [{"index": 0}]}'),
        (JSON_TYPE, b'{"scores": [[1]], "errors": [1]}'),
        (SAFETENSORS_TYPE, b""),
        (SAFETENSORS_TYPE, b"\xff" * 8),
        (SAFETENSORS_TYPE, b"\xff" * 64),
        (SAFETENSORS_TYPE, tensor_file(b"not json")),
        (SAFETENSORS_TYPE, tensor_file([])),
        (SAFETENSORS_TYPE, tensor_file({})),
        (SAFETENSORS_TYPE, tensor_file(one())),
        (SAFETENSORS_TYPE, tensor_file(one(dtype="F64", offsets=(0, 8)), bytes(8))),
        (SAFETENSORS_TYPE, tensor_file(one(dtype=["F32"]), bytes(4))),
        (SAFETENSORS_TYPE, tensor_file(one(shape=(1, -1)), bytes(4))),
        (SAFETENSORS_TYPE, tensor_file(one(shape=(1, 1, 1)), bytes(4))),
        (SAFETENSORS_TYPE, tensor_file(one(shape=()), bytes(4))),
        (SAFETENSORS_TYPE, tensor_file(one(shape=7), bytes(4))),
        (SAFETENSORS_TYPE, tensor_file(one(offsets=(0, 8)), bytes(8))),
        (SAFETENSORS_TYPE, tensor_file(one(offsets=(-4, 0)), bytes(4))),
        (SAFETENSORS_TYPE, tensor_file(one(offsets=(0, "4")), bytes(4))),
        (SAFETENSORS_TYPE, tensor_file({"scores": 1}, bytes(4))),
        (SAFETENSORS_TYPE, tensor_file(one() | {"__metadata__": {"labels": 1}}, bytes(4))),
        (SAFETENSORS_TYPE, tensor_file(one() | {"__metadata__": 7}, bytes(4))),
        (SAFETENSORS_TYPE, tensor_file(one() | {"__metadata__": {"errors": "7"}}, bytes(4))),
        (SAFETENSORS_TYPE, tensor_file(one() | {"__metadata__": {"errors": "\ud800"}}, bytes(4))),
        (SAFETENSORS_TYPE, tensor_file(one() | {"__metadata__": {"labels": "[1]"}}, bytes(4))),
        (SAFETENSORS_TYPE, tensor_file(one() | {"__metadata__": {"labels": '"joy"'}}, bytes(4))),
        (SAFETENSORS_TYPE, tensor_file(one() | {"__metadata__": {"errors": '{"0": 1}'}}, bytes(4))),
        (SAFETENSORS_TYPE, tensor_file(one() | {"__metadata__": {"errors": '[{"index": 1, "code": "x"}]'}}, bytes(4))),
        (SAFETENSORS_TYPE, tensor_file(one() | one("U32", (1,), name="lengths"), struct.pack("<I", 2))),
        (SAFETENSORS_TYPE, tensor_file(one() | one(name="other"), bytes(4))),
    ],
)
def test_a_body_of_another_form_is_refused(content_type: str, body: bytes) -> None:
    """An authentic body is still only what the host said: no other error than the one that says so."""
    with pytest.raises(FormatError):
        read_answers(body, content_type)


@given(body=st.binary(max_size=200), accept=st.sampled_from([JSON_TYPE, SAFETENSORS_TYPE]))
def test_any_bytes_are_read_or_refused(body: bytes, accept: str) -> None:
    """Nothing but FormatError comes out."""
    for candidate in (body, tensor_file(body), tensor_file(one(), body)):
        try:
            read_answers(candidate, accept)
        except FormatError:
            continue
