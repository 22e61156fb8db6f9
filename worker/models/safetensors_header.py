"""The header of a safetensors file, judged before a library that allocates what it says gets to see the file.

u64 little-endian header length ‖ JSON header ‖ data (safetensors, "Format"). The tensors must cover the data from its
first byte to its last without gap or overlap, so that the file's size is the memory that it takes, and so that nothing
lies in it that no tensor accounts for.

May import: the standard library, mrgc.errors, mrgc.wire. Called by worker.models.folder.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

from mrgc.errors import ConfigError, FormatError
from mrgc.wire import strict_json

if TYPE_CHECKING:
    from collections.abc import Iterable

LENGTH_BYTES: Final = 8
#: Some 100 bytes for each of MAX_TENSORS; published checkpoints stay below 200 KB.
MAX_HEADER_BYTES: Final = 8 << 20
MAX_TENSORS: Final = 65_536
MAX_RANK: Final = 8
#: Commas, brackets and braces of one tensor's entry, MAX_RANK dimensions included.
_VALUES_PER_TENSOR: Final = 3 + MAX_RANK + 4

#: Bytes of one element; a type that is not here is refused, those of less than a byte among them.
ITEM_BYTES: Final = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}


class TensorEntry(NamedTuple):
    """One tensor as the header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    #: First byte and the byte after the last, counted from the end of the header.
    begin: int
    end: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_header(file: BinaryIO, *, file_bytes: int, name: str) -> tuple[TensorEntry, ...]:
    """Read and judge the header of a file; its data is not read.

    Args:
        file: positioned at its first byte.
        file_bytes: length of the whole file.
        name: what errors call it.

    Returns:
        The tensors in the order of their data.

    Raises:
        ConfigError: not a safetensors file, or one whose header does not describe exactly its data.
    """
    header_bytes = int.from_bytes(file.read(LENGTH_BYTES), "little")
    _ensure(2 <= header_bytes <= file_bytes - LENGTH_BYTES, name, "its header would end behind the file")
    _ensure(header_bytes <= MAX_HEADER_BYTES, name, f"its header is over {MAX_HEADER_BYTES} bytes")
    try:
        fields = strict_json.parse(file.read(header_bytes), max_values=MAX_TENSORS * _VALUES_PER_TENSOR)
    except FormatError as error:
        raise ConfigError(f"{name} is not a safetensors file: its header is not strict json") from error
    _ensure(type(fields) is dict and len(fields) <= MAX_TENSORS, name, f"its header is no map of {MAX_TENSORS} tensors")
    metadata = fields.pop("__metadata__", {})
    _ensure(type(metadata) is dict and _all_text(metadata.values()), name, "its __metadata__ is no map of texts")
    entries = sorted((_entry(tensor, value, name) for tensor, value in fields.items()), key=lambda each: each[3:])
    end = 0
    for entry in entries:
        _ensure(entry.begin == end, name, f"tensor {entry.name} overlaps another or leaves a gap")
        end = entry.end
    _ensure(end == file_bytes - LENGTH_BYTES - header_bytes, name, "its tensors do not cover exactly its data")
    return tuple(entries)


def _entry(tensor: str, value: Any, name: str) -> TensorEntry:
    form = f"tensor {tensor[:128]!r} has an entry of another form"
    _ensure(type(value) is dict and value.keys() == {"dtype", "shape", "data_offsets"}, name, form)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    _ensure(type(dtype) is str and dtype in ITEM_BYTES, name, f"tensor {tensor[:128]!r} has an unknown dtype")
    _ensure(type(shape) is list and len(shape) <= MAX_RANK and all(map(_is_length, shape)), name, form)
    _ensure(type(offsets) is list and len(offsets) == 2 and all(map(_is_length, offsets)), name, form)
    entry = TensorEntry(tensor, dtype, tuple(shape), *offsets)
    _ensure(
        entry.end - entry.begin == entry.elements * ITEM_BYTES[dtype],
        name,
        f"tensor {tensor[:128]!r} has other bytes than its shape and dtype say",
    )
    return entry


def _is_length(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _all_text(values: Iterable[object]) -> bool:
    return all(type(value) is str for value in values)


def _ensure(holds: object, name: str, what: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is not a safetensors file: {what}")
