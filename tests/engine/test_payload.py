"""Opened payloads: what docs/spec.md §3 allows, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrgc.errors import PayloadError
from mrgc.payloads import JobOptions, encode_payload
from mrgc.wire import strict_cbor
from mrgc.wire.headers import CBOR_TYPE, JSON_TYPE, SAFETENSORS_TYPE
from worker.engine import payload
from worker.engine.payload import Payload
from worker.models.token_ids import DTYPES

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "payloads" / "vectors.json").read_bytes()
)


def parse(text: bytes, items: int = 1, content_type: str = JSON_TYPE) -> Payload:
    """Parse a payload as the opening stage does: from a view that can be zeroed."""
    return payload.parse(memoryview(bytearray(text)), content_type=content_type, items=items)


@given(inputs=st.lists(st.text(), min_size=1, max_size=8))
def test_json_and_cbor_payloads_say_the_same(inputs: list[str]) -> None:
    """Whatever texts a tenant sends arrive as they were, in either form."""
    expected = Payload(list(inputs), truncate=False, accept=JSON_TYPE, ids="", parameters={})
    assert parse(json.dumps({"inputs": inputs}).encode(), len(inputs)) == expected
    assert parse(strict_cbor.encode({"inputs": inputs}), len(inputs), CBOR_TYPE) == expected


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["name"]))
def test_payloads_are_those_of_the_vectors(vector: dict[str, Any]) -> None:
    """What the tenant's client writes is what the engine reads, and neither has another form for it."""
    body = bytes.fromhex(vector["body"])
    if "code" in vector:
        with pytest.raises(PayloadError) as caught:
            parse(body, vector["items"], vector["type"])
        assert caught.value.code == vector["code"]
        return
    inputs, options = vector["inputs"], vector["options"]
    assert encode_payload(inputs, JobOptions("m", **options)) == (vector["type"], body)
    parsed = parse(body, len(inputs), vector["type"])
    assert (parsed.truncate, parsed.accept) == (options.get("truncate", False), options.get("accept", JSON_TYPE))
    assert parsed.parameters == ({"labels": options["labels"]} if "labels" in options else {})
    if parsed.ids:
        assert [np.frombuffer(value, DTYPES[parsed.ids]).tolist() for value in parsed.inputs] == inputs  # type: ignore[call-overload]
    else:
        assert parsed.inputs == inputs


@pytest.mark.parametrize("content_type", [JSON_TYPE, CBOR_TYPE])
def test_parameters_are_read(content_type: str) -> None:
    """Both parameters that every model knows."""
    fields = {"inputs": ["x"], "parameters": {"truncate": True, "accept": SAFETENSORS_TYPE}}
    text = json.dumps(fields).encode() if content_type == JSON_TYPE else strict_cbor.encode(fields)
    assert parse(text, 1, content_type) == Payload(["x"], truncate=True, accept=SAFETENSORS_TYPE, ids="", parameters={})


def test_white_space_may_hide_the_length_of_a_payload() -> None:
    """docs/spec.md §3: JSON payloads may end in white space."""
    assert parse(b'{"inputs": ["x"]}' + b" \n" * 50_000).inputs == ["x"]


def test_elements_that_are_not_text_are_kept_for_the_tokeniser_to_fail() -> None:
    """One wrong input must not fail its neighbours."""
    values: list[Any] = [1, None, True, 1.5, ["nested"], {"a": "b"}, "good"]
    assert parse(json.dumps({"inputs": values}).encode(), len(values)).inputs == values


def test_lone_surrogates_reach_the_tokeniser() -> None:
    """JSON can escape what UTF-8 cannot carry; that is one input's error."""
    assert parse(rb'{"inputs": ["\ud800"]}').inputs == ["\ud800"]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{}",
        b'{"inputs": "x"}',
        b'{"inputs": {"0": "x"}}',
        b'{"inputs": []}',
        b'{"inputs": ["x", "y"]}',
        b'{"inputs": ["x"], "input": ["x"]}',
        b'{"inputs": ["x"], "inputs": ["x"]}',
        b'{"inputs": ["x"], "parameters": []}',
        b'{"inputs": ["x"], "parameters": null}',
        b'{"inputs": ["x"], "parameters": {"truncate": 1}}',
        b'{"inputs": ["x"], "parameters": {"truncate": "true"}}',
        b'{"inputs": ["x"], "parameters": {"accept": "text/csv"}}',
        b'{"inputs": ["x"], "parameters": {"accept": ["application/json"]}}',
        b'{"inputs": ["x"], "parameters": {"truncate": true, "truncate": false}}',
        b'\xef\xbb\xbf{"inputs": ["x"]}',
        b'{"inputs": ["\xff"]}',
        b'{"inputs": ["\xed\xa0\x80"]}',
        b'{"inputs": [NaN]}',
        b'{"inputs": [-Infinity]}',
        b'{"inputs": ["x"]} x',
        b'{"inputs": ["x"]}\x00',
        b"{'inputs': ['x']}",
        b'{"inputs": ["x",]}',
        b'{"inputs": ["unended',
        b'{"inputs": [[[[[[[[["x"]]]]]]]]]}',
        b'{"inputs": ["x"], "parameters": {"truncate": %s}}' % (b"9" * 5_000),
        '{"inputs": ["x"]}'.encode("utf-16"),
    ],
)
def test_a_payload_of_another_form_fails_the_job(text: bytes) -> None:
    """Each violation ends as bad_payload, which the tenant reads in a sealed result."""
    with pytest.raises(PayloadError) as caught:
        parse(text)
    assert caught.value.code == "bad_payload"


def test_parameters_that_not_every_model_knows_are_left_to_the_model() -> None:
    """The model that was asked says whether it knows them."""
    asked = parse(b'{"inputs": ["x"], "parameters": {"truncate": true, "colour": ["red"]}}')
    assert (asked.truncate, asked.parameters) == (True, {"colour": ["red"]})


@pytest.mark.parametrize(
    "value",
    [
        {"inputs": ["x"], "parameters": {"truncate": 1}},
        {"inputs": ["x", "y"]},
        {"inputs": ["x"], "extra": 1},
        {"inputs": "x"},
        ["x"],
        {"inputs": [1.5]},
        {"inputs": [None]},
        {"inputs": [-1]},
        {"inputs": [cbor2.CBORTag(1, 1)]},
    ],
)
def test_cbor_of_another_form_fails_the_job(value: Any) -> None:
    """The subset of docs/spec.md §0 holds inside payloads, booleans excepted."""
    with pytest.raises(PayloadError):
        parse(cbor2.dumps(value), 1, CBOR_TYPE)


def test_cbor_elements_that_are_not_text_are_kept() -> None:
    """As in JSON, an input of another type fails alone."""
    values = [1, b"bytes", True, "good"]
    encoded = strict_cbor.encode({"inputs": values})
    assert parse(encoded, len(values), CBOR_TYPE).inputs == values


def test_a_million_empty_values_are_refused_before_they_are_allocated() -> None:
    """Statement 10: a payload cannot make the engine build a thousand times its own size."""
    with pytest.raises(PayloadError):
        parse(b'{"inputs": [' + b"[]," * 1_000_000 + b"1]}")
    with pytest.raises(PayloadError):
        parse(b"\xa1\x66inputs\x9a\x00\x0f\x42\x40" + b"\x80" * 1_000_000, 1, CBOR_TYPE)
    with pytest.raises(PayloadError):
        parse(b"[" * 1_000_000)


def test_commas_and_brackets_inside_texts_do_not_count() -> None:
    """Texts may hold any character in any number."""
    text = ',[{"\\' * 20_000
    assert parse(json.dumps({"inputs": [text]}).encode()).inputs == [text]


@given(data=st.binary(max_size=80), content_type=st.sampled_from([JSON_TYPE, CBOR_TYPE]))
def test_arbitrary_bytes_parse_or_fail_the_job(data: bytes, content_type: str) -> None:
    """No byte string raises anything but PayloadError."""
    try:
        parse(data, 1, content_type)
    except PayloadError:
        return


@given(
    data=st.binary(max_size=12).map(lambda tail: strict_cbor.encode({"inputs": ["x", "y"]})[:-2] + tail),
)
def test_cut_and_altered_cbor_parses_or_fails_the_job(data: bytes) -> None:
    """The walk over heads ends, and agrees with the parser, on damaged items."""
    try:
        assert len(parse(data, 2, CBOR_TYPE).inputs) == 2
    except PayloadError:
        return


def test_a_payload_does_not_show_its_texts() -> None:
    """A log line or a traceback with a payload in it names its shape only."""
    assert "secret" not in repr(parse(b'{"inputs": ["secret"]}'))
