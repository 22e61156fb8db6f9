"""Read a tenant's lines and group them into jobs: the only module that judges a tenant's file.

One pass, one line in memory at a time. A line that cannot be sent ends the reading with its place,
`FILE:LINE: reason`; the caller has sent nothing by then.

    .txt     one text per line; blank lines are skipped
    .jsonl   per line a JSON string, {"text": …}, {"ids": [integer, …]}, the token ids of a text, or
             {"inputs": [text, …]}, which is a job of its own

Called by `mrgc.cli`. May import: the standard library, mrgc.errors, mrgc.payloads, mrgc.wire.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO, Final, NamedTuple

from mrgc.errors import FormatError, InputFileError
from mrgc.payloads import Input
from mrgc.wire import strict_json
from mrgc.wire.headers import MAX_ITEMS
from mrgc.wire.sealed import MAX_BODY_BYTES

DEFAULT_ITEMS_PER_JOB: Final = 16
#: Texts are grouped up to this payload, so that a grouped job fits a queue message (524,288 bytes, docs/spec.md §5)
#: with the longest legal header. A single longer text still becomes a job.
GROUP_BYTES: Final = 500_000
MAX_LINE_BYTES: Final = MAX_BODY_BYTES  #: A longer line could not become a payload; rejects before parsing.
_MAX_LINE_VALUES: Final = MAX_ITEMS + 8
_ID_END: Final = 1 << 32
_ID_BYTES: Final = 4
_CBOR_HEAD_BYTES: Final = 5
#: Names, brackets and parameters around the texts of a payload.
_PAYLOAD_FRAME_BYTES: Final = 256
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class LineFormat(StrEnum):
    """How a line is read."""

    TXT = "txt"
    JSONL = "jsonl"


class JobInput(NamedTuple):
    """The inputs of one job and the lines, counted from 1, that they came from."""

    inputs: Sequence[Input]
    first_line: int
    last_line: int

    def __repr__(self) -> str:
        """Show where the inputs came from, not the inputs."""
        return f"JobInput({len(self.inputs)} inputs, lines {self.first_line}..{self.last_line})"


@dataclass(slots=True)
class _Group:
    """Inputs that will share a job, all of them texts or all of them ids: the grouping policy."""

    max_items: int
    inputs: list[Input]
    payload_bytes: int = 0
    first_line: int = 0
    last_line: int = 0

    def has_room(self, value: Input, size_bytes: int) -> bool:
        is_alike = not self.inputs or isinstance(self.inputs[0], str) == isinstance(value, str)
        return is_alike and len(self.inputs) < self.max_items and self.payload_bytes + size_bytes <= GROUP_BYTES

    def add(self, value: Input, size_bytes: int, line: int) -> None:
        if not self.inputs:
            self.first_line = line
        self.inputs.append(value)
        self.payload_bytes += size_bytes
        self.last_line = line

    def take(self) -> Iterator[JobInput]:
        if self.inputs:
            yield JobInput(self.inputs, self.first_line, self.last_line)
            self.inputs = []
            self.payload_bytes = 0


def read_jobs(stream: BinaryIO, *, name: str, line_format: LineFormat, items_per_job: int) -> Iterator[JobInput]:
    """Turn lines into jobs, in order.

    Args:
        stream: the file, opened for bytes.
        name: how error texts call it.
        line_format: how to read a line.
        items_per_job: inputs per job, 1..16,384; lines with `inputs` are jobs as they stand.

    Raises:
        InputFileError: `name:line: reason` for the first line that cannot be sent, or an empty file.
    """
    group = _Group(max_items=items_per_job, inputs=[])
    is_empty = True
    for number, line in enumerate(_lines(stream, name), start=1):
        try:
            inputs, is_job = _text_line(line) if line_format is LineFormat.TXT else _json_line(line)
            size_bytes = _payload_bytes(inputs)
        except FormatError as error:
            raise InputFileError(f"{name}:{number}: {error}") from None
        is_empty = is_empty and not inputs
        if is_job or (inputs and not group.has_room(inputs[0], size_bytes)):
            yield from group.take()
        if is_job:
            yield JobInput(inputs, number, number)
        elif inputs:
            group.add(inputs[0], size_bytes, number)
    if is_empty:
        raise InputFileError(f"{name}: nothing to send")
    yield from group.take()


def _lines(stream: BinaryIO, name: str) -> Iterator[bytes]:
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise InputFileError(f"{name}:{number}: line is over {MAX_LINE_BYTES} bytes")
        if number == 1 and line.startswith(_BYTE_ORDER_MARK):
            raise InputFileError(f"{name}:1: file starts with a byte order mark")
        yield line.removesuffix(b"\n").removesuffix(b"\r")


def _text_line(line: bytes) -> tuple[Sequence[Input], bool]:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"not utf-8 at byte {error.start + 1}") from None
    return ([text] if text.strip() else []), False


def _json_line(line: bytes) -> tuple[Sequence[Input], bool]:
    """Return the inputs of a line, and whether they are a job of their own."""
    value = strict_json.parse(line, max_values=_MAX_LINE_VALUES)
    if isinstance(value, str):
        return [value], False
    if isinstance(value, dict) and set(value) == {"text"} and isinstance(value["text"], str):
        return [value["text"]], False
    if isinstance(value, dict) and set(value) == {"ids"} and isinstance(value["ids"], list):
        if not value["ids"] or not all(type(number) is int and 0 <= number < _ID_END for number in value["ids"]):
            raise FormatError(f"ids is empty or holds something that is no integer of 0..{_ID_END - 1}")
        return [value["ids"]], False
    if isinstance(value, dict) and set(value) == {"inputs"} and isinstance(value["inputs"], list):
        texts = value["inputs"]
        if not all(isinstance(text, str) for text in texts):
            raise FormatError("inputs holds something that is not a string")
        if not 1 <= len(texts) <= MAX_ITEMS:
            raise FormatError(f"inputs has {len(texts)} texts; a job holds 1..{MAX_ITEMS}")
        return texts, True
    raise FormatError('not a string, {"text": string}, {"ids": [integer, ...]} or {"inputs": [string, ...]}')


def _payload_bytes(inputs: Sequence[Input]) -> int:
    """Bytes of the inputs inside a payload, at most; what stands between them included."""
    try:
        size_bytes = sum(
            len(json.dumps(value, ensure_ascii=False).encode()) + 1
            if isinstance(value, str)
            else _ID_BYTES * len(value) + _CBOR_HEAD_BYTES
            for value in inputs
        )
    except UnicodeEncodeError:
        raise FormatError("text holds a lone surrogate, which is not unicode text") from None
    if size_bytes > MAX_BODY_BYTES - _PAYLOAD_FRAME_BYTES:
        raise FormatError(f"texts are too long for one payload of {MAX_BODY_BYTES} bytes")
    return size_bytes
