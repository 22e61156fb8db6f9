"""Lines into jobs: grouping, formats, and a place and a reason for every line that cannot be sent."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrgc import inputs
from mrgc.errors import ConfigError, FormatError, InputFileError
from mrgc.inputs import GROUP_BYTES, JobInput, LineFormat, read_jobs
from mrgc.job_queue import MAX_INLINE_BYTES
from mrgc.payloads import Input, JobOptions, encode_payload
from mrgc.wire import strict_cbor
from mrgc.wire.headers import CBOR_TYPE, JSON_TYPE
from mrgc.wire.sealed import MAX_BODY_BYTES, MAX_HEADER_BYTES

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"), min_size=1)


def read(data: bytes, line_format: LineFormat = LineFormat.JSONL, items_per_job: int = 16) -> list[JobInput]:
    """Read a whole file."""
    return list(read_jobs(io.BytesIO(data), name="FILE", line_format=line_format, items_per_job=items_per_job))


@given(texts=st.lists(TEXTS.filter(str.strip), min_size=1, max_size=40), items_per_job=st.integers(1, 7))
def test_text_lines_come_back_in_order_in_full_groups(texts: Sequence[str], items_per_job: int) -> None:
    """Every text of a .txt file is in exactly one job, in order, and only the last job may be short."""
    jobs = read("\n".join(texts).encode(), LineFormat.TXT, items_per_job)
    assert [text for job in jobs for text in job.inputs] == texts
    assert all(len(job.inputs) == items_per_job for job in jobs[:-1])
    assert [job.first_line for job in jobs] == list(range(1, len(texts) + 1, items_per_job))


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=40))
def test_json_lines_hold_any_text(texts: list[str]) -> None:
    """What a JSON string can say arrives unchanged, as a string or as an object."""
    lines = [json.dumps(text if index % 2 else {"text": text}) for index, text in enumerate(texts)]
    assert [text for job in read("\n".join(lines).encode()) for text in job.inputs] == texts


def test_a_line_of_inputs_is_a_job_of_its_own() -> None:
    """It ends the group before it, is not filled up, and keeps its place."""
    data = b'"a"\n{"inputs": ["b", "c"]}\n"d"\n'
    assert read(data) == [(["a"], 1, 1), (["b", "c"], 2, 2), (["d"], 3, 3)]


def test_blank_lines_of_a_text_file_are_skipped_but_counted() -> None:
    """Line numbers are those of the file, whatever its line ends."""
    assert read(b"\na\r\n  \t\nb", LineFormat.TXT) == [(["a", "b"], 2, 4)]


def test_long_texts_are_grouped_so_that_a_job_fits_a_queue_message() -> None:
    """Groups close before the inline cap of the queue; a longer text is alone."""
    texts = ["\x01" * 30_000, "y" * 400_000, "z" * 600_000, "w"]
    jobs = read("\n".join(json.dumps(text) for text in texts).encode())
    assert [len(job.inputs) for job in jobs] == [1, 1, 1, 1]
    sizes = [len(encode_payload(job.inputs, JobOptions("m")).body) for job in jobs]
    assert [size <= GROUP_BYTES + 256 for size in sizes] == [True, True, False, True]
    assert GROUP_BYTES + 256 + MAX_HEADER_BYTES + 12 + 16 <= MAX_INLINE_BYTES


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "not json at character 1"),
        (b"plain text", "not json at character 1"),
        (b'"open', "not json"),
        (b"1", "not a string"),
        (b"null", "not a string"),
        (b'["a"]', "not a string"),
        (b"{}", "not a string"),
        (b'{"text": 1}', "not a string"),
        (b'{"text": "a", "id": 7}', "not a string"),
        (b'{"text": "a", "text": "b"}', "name twice"),
        (b'{"text": "a", "inputs": ["b"]}', "not a string"),
        (b'{"inputs": "a"}', "not a string"),
        (b'{"inputs": []}', "0 texts"),
        (b'{"ids": []}', "ids is empty"),
        (b'{"ids": [1, -1]}', "no integer of 0..4294967295"),
        (b'{"ids": [4294967296]}', "no integer"),
        (b'{"ids": [1.5]}', "no integer"),
        (b'{"ids": [true]}', "no integer"),
        (b'{"ids": "1"}', "not a string"),
        (b'{"ids": [' + b"1," * 20_000 + b"1]}", "too many values"),
        (b'{"inputs": ["a", 1]}', "not a string"),
        (b'{"inputs": [' + b'"",' * 16_384 + b'""]}', "16385 texts"),
        (b'{"inputs": [' + b'"",' * 20_000 + b'""]}', "too many values"),
        (b"[" * 100_000, "nested too deeply|too many values"),
        (b"NaN", "number"),
        (b"1" * 5_000, "number"),
        (b'"\\ud800"', "lone surrogate"),
        (b'"\xff"', "not utf-8 at byte 2"),
        (b'"a" "b"', "not json at character 5"),
    ],
)
def test_a_malformed_json_line_is_named_with_its_place(line: bytes, reason: str) -> None:
    """The third of five lines: nothing after it is looked at, and its place and reason are told."""
    with pytest.raises(InputFileError, match=rf"^FILE:3: .*({reason})"):
        read(b'"a"\n"b"\n' + line + b'\n"d"\nrubbish\n')


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"a\nb\n\xc3\x28\n", "FILE:3: not utf-8 at byte 1"),
        (b"\xef\xbb\xbfa\n", "FILE:1: file starts with a byte order mark"),
        (b"", "FILE: nothing to send"),
        (b"\n \n", "FILE: nothing to send"),
    ],
)
def test_a_malformed_text_file_is_refused(data: bytes, reason: str) -> None:
    """Bytes that are not text, or no text at all."""
    with pytest.raises(InputFileError, match=f"^{reason}"):
        read(data, LineFormat.TXT)


def test_a_line_over_the_cap_is_refused_before_it_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte over the cap is enough to refuse a line; no more of it is read."""
    monkeypatch.setattr(inputs, "MAX_LINE_BYTES", 1_000)
    stream = io.BytesIO(b"ok\n" + b"x" * 1_000_000)
    with pytest.raises(InputFileError, match="FILE:2: line is over 1000 bytes"):
        list(read_jobs(stream, name="FILE", line_format=LineFormat.TXT, items_per_job=16))
    assert stream.tell() == len(b"ok\n") + 1_001


def test_texts_that_no_payload_can_hold_are_refused() -> None:
    """A line that fits the cap, but grows past it as JSON, is refused at its place."""
    with pytest.raises(InputFileError, match="FILE:1: texts are too long"):
        read(b"\x01" * (MAX_BODY_BYTES // 6), LineFormat.TXT)


def test_a_text_shows_in_no_repr() -> None:
    """A job's input prints its place, not its texts."""
    assert "secret" not in repr(JobInput(["secret"], 1, 1))


def test_a_payload_leaves_defaults_out() -> None:
    """Only what differs from the specification's defaults is said."""
    assert encode_payload(["é"], JobOptions("m")) == (JSON_TYPE, '{"inputs":["é"]}'.encode())
    options = JobOptions("m", truncate=True, accept="application/vnd.safetensors")
    assert json.loads(encode_payload(["a"], options).body)["parameters"] == {
        "truncate": True,
        "accept": "application/vnd.safetensors",
    }
    with pytest.raises(FormatError):
        encode_payload(["\udfff"], options)


def test_lines_of_token_ids_are_grouped_apart_from_texts() -> None:
    """A job has one kind of inputs, so a change of kind begins a new one."""
    data = b'{"ids": [101, 102]}\n{"ids": [70000]}\n"text"\n{"ids": [1]}\n'
    assert read(data) == [([[101, 102], [70000]], 1, 2), (["text"], 3, 3), ([[1]], 4, 4)]


@pytest.mark.parametrize(("ids", "kind", "packed"), [(65_535, "u16", b"\xff\xff"), (65_536, "u32", b"\0\0\x01\0")])
def test_token_ids_travel_as_little_endian_byte_strings(ids: int, kind: str, packed: bytes) -> None:
    """In the narrower of the two forms that holds every id of the job."""
    payload = encode_payload([[ids], []], JobOptions("m", labels=("a", "b")))
    assert payload.type == CBOR_TYPE
    assert strict_cbor.decode(payload.body) == {
        "inputs": [packed, b""],
        "parameters": {"ids": kind, "labels": ["a", "b"]},
    }


@pytest.mark.parametrize("values", [["text", [1]], [[1], [-1]], [[1 << 32]]])
def test_inputs_that_no_payload_holds_are_refused(values: Sequence[Input]) -> None:
    """Texts beside ids, and numbers that are no ids."""
    with pytest.raises(FormatError):
        encode_payload(values, JobOptions("m"))


@pytest.mark.parametrize(
    "labels", [["one"], ["same", "same"], ["a", "b", "a"], ["a", "\ud800"], [str(number) for number in range(65)]]
)
def test_labels_that_no_model_takes_are_refused_before_anything_is_sealed(labels: list[str]) -> None:
    """docs/spec.md §3: 2 to 64 different ones."""
    with pytest.raises(ConfigError, match="label"):
        JobOptions("m", labels=labels)
