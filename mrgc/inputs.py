"""Read a tenant's lines and group them into jobs: the only module that judges a tenant's file.

One pass, one line in memory at a time. A line that cannot be sent ends the reading with its place,
`FILE:LINE: reason`; the caller has sent nothing by then.

    .txt     one text per line; blank lines are skipped
    .jsonl   per line a JSON string, {"text": …}, or {"inputs": [text, …]}, which is a job of its own

Called by `mrgc.cli`. May import: the standard library, mrgc.errors, mrgc.payloads, mrgc.wire.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO, Final, NamedTuple

from mrgc.errors import FormatError, InputFileError
from mrgc.wire import strict_json
from mrgc.wire.headers import MAX_ITEMS
from mrgc.wire.sealed import MAX_BODY_BYTES

DEFAULT_ITEMS_PER_JOB: Final = 16
#: Texts are grouped up to this payload, so that a grouped job fits a queue message (524,288 bytes, docs/spec.md §5)
#: with the longest legal header. A single longer text still becomes a job.
GROUP_BYTES: Final = 500_000
MAX_LINE_BYTES: Final = MAX_BODY_BYTES  #: A longer line could not become a payload; rejects before parsing.
_MAX_LINE_VALUES: Final = MAX_ITEMS + 8
#: Names, brackets and parameters around the texts of a payload.
_PAYLOAD_FRAME_BYTES: Final = 256
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class LineFormat(StrEnum):
    """How a line is read."""

    TXT = "txt"
    JSONL = "jsonl"


class JobInput(NamedTuple):
    """The texts of one job and the lines, counted from 1, that they came from."""

    texts: Sequence[str]
    first_line: int
    last_line: int

    def __repr__(self) -> str:
        """Show where the texts came from, not the texts."""
        return f"JobInput({len(self.texts)} texts, lines {self.first_line}..{self.last_line})"


@dataclass(slots=True)
class _Group:
    """Texts that will share a job: the grouping policy."""

    max_items: int
    texts: list[str]
    payload_bytes: int = 0
    first_line: int = 0
    last_line: int = 0

    def has_room(self, text_bytes: int) -> bool:
        return len(self.texts) < self.max_items and self.payload_bytes + text_bytes <= GROUP_BYTES

    def add(self, text: str, text_bytes: int, line: int) -> None:
        if not self.texts:
            self.first_line = line
        self.texts.append(text)
        self.payload_bytes += text_bytes
        self.last_line = line

    def take(self) -> Iterator[JobInput]:
        if self.texts:
            yield JobInput(self.texts, self.first_line, self.last_line)
            self.texts = []
            self.payload_bytes = 0


def read_jobs(stream: BinaryIO, *, name: str, line_format: LineFormat, items_per_job: int) -> Iterator[JobInput]:
    """Turn lines into jobs, in order.

    Args:
        stream: the file, opened for bytes.
        name: how error texts call it.
        line_format: how to read a line.
        items_per_job: texts per job, 1..16,384; lines with `inputs` are jobs as they stand.

    Raises:
        InputFileError: `name:line: reason` for the first line that cannot be sent, or an empty file.
    """
    group = _Group(max_items=items_per_job, texts=[])
    is_empty = True
    for number, line in enumerate(_lines(stream, name), start=1):
        try:
            texts, is_job = _text_line(line) if line_format is LineFormat.TXT else _json_line(line)
            size_bytes = _payload_bytes(texts)
        except FormatError as error:
            raise InputFileError(f"{name}:{number}: {error}") from None
        is_empty = is_empty and not texts
        if is_job or not group.has_room(size_bytes):
            yield from group.take()
        if is_job:
            yield JobInput(texts, number, number)
        elif texts:
            group.add(texts[0], size_bytes, number)
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


def _text_line(line: bytes) -> tuple[list[str], bool]:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"not utf-8 at byte {error.start + 1}") from None
    return ([text] if text.strip() else []), False


def _json_line(line: bytes) -> tuple[list[str], bool]:
    """Return the texts of a line, and whether they are a job of their own."""
    value = strict_json.parse(line, max_values=_MAX_LINE_VALUES)
    if isinstance(value, str):
        return [value], False
    if isinstance(value, dict) and set(value) == {"text"} and isinstance(value["text"], str):
        return [value["text"]], False
    if isinstance(value, dict) and set(value) == {"inputs"} and isinstance(value["inputs"], list):
        texts = value["inputs"]
        if not all(isinstance(text, str) for text in texts):
            raise FormatError("inputs holds something that is not a string")
        if not 1 <= len(texts) <= MAX_ITEMS:
            raise FormatError(f"inputs has {len(texts)} texts; a job holds 1..{MAX_ITEMS}")
        return texts, True
    raise FormatError('not a string, {"text": string} or {"inputs": [string, ...]}')


def _payload_bytes(texts: Sequence[str]) -> int:
    """Bytes of the texts inside a payload, commas included."""
    try:
        size_bytes = sum(len(json.dumps(text, ensure_ascii=False).encode()) + 1 for text in texts)
    except UnicodeEncodeError:
        raise FormatError("text holds a lone surrogate, which is not unicode text") from None
    if size_bytes > MAX_BODY_BYTES - _PAYLOAD_FRAME_BYTES:
        raise FormatError(f"texts are too long for one payload of {MAX_BODY_BYTES} bytes")
    return size_bytes
