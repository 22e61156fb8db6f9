"""Result bodies as plain Python values, whether they came as JSON or as safetensors (docs/spec.md §3).

A body is authentic, but at tier 0 it is what the service's host said: its form is checked, its meaning is the reader's.
Numbers become lists; for large results numpy's or safetensors' own reader of `OpenedResult.body` takes less memory.

Called by `mrgc.results`. May import: the standard library, mrgc.errors, mrgc.wire.
"""

from __future__ import annotations

import array
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mrgc.errors import FormatError
from mrgc.wire import strict_json
from mrgc.wire.headers import JSON_TYPE, SAFETENSORS_TYPE
from mrgc.wire.sealed import MAX_BODY_BYTES

#: What a JSON body can hold at four characters (`0.1,`) a value; bounds what parsing it allocates.
MAX_RESULT_VALUES: Final = MAX_BODY_BYTES // 4
_MAX_HEADER_BYTES: Final = 1 << 24
_MEMBERS: Final = ("embeddings", "scores", "labels", "offsets", "errors")
#: Codes of `array` by the number types that results have.
_CODES: Final = {"F32": "f", "U32": "I"}


@dataclass(frozen=True, slots=True)
class Answers:
    """What the inputs of one job came to, in their order; an input that failed has None in each list.

    Each list is empty if results of that kind have none. With a model that answers token by token, a row of `scores` is
    a list of one row per token, and `offsets` says where in its text each token is.
    """

    embeddings: list[Any] = field(default_factory=list, repr=False)
    scores: list[Any] = field(default_factory=list, repr=False)
    #: What the numbers in a row of scores stand for.
    labels: list[str] = field(default_factory=list, repr=False)
    offsets: list[Any] = field(default_factory=list, repr=False)
    #: Codes by index of the inputs that failed.
    errors: dict[int, str] = field(default_factory=dict)

    def best(self) -> list[tuple[str, float] | None]:
        """Return the label with the highest score of each input, and that score.

        Raises:
            FormatError: there are no scores of whole inputs.
        """
        if not self.scores or any(row is not None and not _is_row(row, len(self.labels)) for row in self.scores):
            raise FormatError("result has no scores of whole inputs")
        return [None if row is None else max(zip(self.labels, row, strict=True), key=_score) for row in self.scores]


def read_answers(body: bytes, content_type: str) -> Answers:
    """Read the body of a result that is ok or partial.

    Raises:
        FormatError: it does not follow docs/spec.md §3.
    """
    if content_type == JSON_TYPE:
        members = strict_json.parse(body, max_values=MAX_RESULT_VALUES)
    elif content_type == SAFETENSORS_TYPE:
        members = _of_tensors(body)
    else:
        raise FormatError("result is of a type that has no rows")
    if type(members) is not dict or not members.keys() <= set(_MEMBERS):
        raise FormatError("result has an unknown member")
    if not all(type(value) is list for value in members.values()):
        raise FormatError("result has a member that is no list")
    errors = _errors(members.pop("errors", []))
    labels = members.pop("labels", [])
    if not all(type(label) is str for label in labels):
        raise FormatError("result has a label that is no text")
    if len({len(rows) for rows in members.values()}) != 1:
        raise FormatError("result has no rows, or not equally many of each kind")
    return Answers(**members, labels=labels, errors=errors)


def _is_row(row: Any, width: int) -> bool:
    return type(row) is list and len(row) == width > 0 and all(type(number) in (int, float) for number in row)


def _score(pair: tuple[str, float]) -> float:
    return pair[1]


def _errors(entries: list[Any]) -> dict[int, str]:
    errors = {}
    for entry in entries:
        if type(entry) is not dict or entry.keys() != {"index", "code"}:
            raise FormatError("result has an error of another form")
        if type(entry["index"]) is not int or type(entry["code"]) is not str:
            raise FormatError("result has an error of another form")
        errors[entry["index"]] = entry["code"]
    return errors


def _of_tensors(body: bytes) -> dict[str, Any]:
    header_bytes = int.from_bytes(body[:8], "little")
    if len(body) < 8 or header_bytes > min(len(body) - 8, _MAX_HEADER_BYTES):
        raise FormatError("result is not a safetensors file")
    header = strict_json.parse(body[8 : 8 + header_bytes], max_values=MAX_RESULT_VALUES)
    if type(header) is not dict:
        raise FormatError("result is not a safetensors file")
    metadata = header.pop("__metadata__", {})
    if type(metadata) is not dict:
        raise FormatError("result has metadata that is no map")
    data = memoryview(body)[8 + header_bytes :]
    tensors = {name: _rows(entry, data) for name, entry in header.items()}
    members = {name: _metadata(metadata, name) for name in ("errors", "labels") if name in metadata}
    lengths = tensors.pop("lengths", None)
    if lengths is not None:
        tensors = {name: _ragged(rows, lengths) for name, rows in tensors.items()}
    for index in _errors(members.get("errors", [])):
        for rows in tensors.values():
            if not 0 <= index < len(rows):
                raise FormatError("result has an error of an input that it has not")
            rows[index] = None
    return members | tensors


def _metadata(metadata: dict[str, Any], name: str) -> list[Any]:
    text = metadata[name]
    value = (
        strict_json.parse(text.encode(errors="replace"), max_values=MAX_RESULT_VALUES) if type(text) is str else None
    )
    if type(value) is not list:
        raise FormatError("result has metadata that is no list")
    return value


def _rows(entry: Any, data: memoryview) -> list[Any]:
    """Read a tensor of one dimension as a list of numbers, one of two as a list of lists."""
    try:
        (start, end), shape, code = entry["data_offsets"], entry["shape"], _CODES[entry["dtype"]]
        width = shape[1] if len(shape) == 2 else 1
        if not all(type(number) is int and number >= 0 for number in (start, end, *shape)) or len(shape) not in (1, 2):
            raise FormatError("result has a tensor of another form")
    except (TypeError, LookupError, ValueError):
        raise FormatError("result has a tensor of another form") from None
    if end > len(data) or end - start != shape[0] * width * 4:
        raise FormatError("result has a tensor that does not lie in it")
    numbers = array.array(code, bytes(data[start:end]))
    if sys.byteorder == "big":
        numbers.byteswap()
    flat = numbers.tolist()
    return flat if len(shape) == 1 else [flat[place : place + width] for place in range(0, len(flat), width or 1)]


def _ragged(rows: list[Any], lengths: Sequence[Any]) -> list[Any]:
    if not all(type(length) is int for length in lengths) or sum(lengths) != len(rows):
        raise FormatError("result has lengths that are not those of its rows")
    return [rows[end - length : end] for length, end in zip(lengths, itertools.accumulate(lengths), strict=True)]
