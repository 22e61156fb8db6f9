"""Result bodies: an answer and per-input errors as JSON or safetensors (docs/spec.md §3).

What the answer looks like is its model's affair; form, status, errors and the cap are the same for all.

May import: the standard library, numpy, mrgc.errors, mrgc.wire, worker.models.base. Called by worker.engine.jobs.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from mrgc.errors import ModelError, ResultTooLarge
from mrgc.wire.headers import JSON_TYPE, SAFETENSORS_TYPE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mrgc.wire.strict_cbor import Buffer
    from worker.models.base import Answer, Tensors

#: Names of number types (safetensors, "Format") by numpy's of their little-endian form.
_DTYPES: Final = {"<f4": "F32", "<u4": "U32", "|u1": "U8"}
#: A safetensors header is padded so that the tensor behind it is aligned.
_ALIGNMENT_BYTES: Final = 8


class Body(NamedTuple):
    """A result before it is sealed."""

    status: str
    type: str
    #: Zeroed by its owner once it is sealed.
    data: bytearray

    def __repr__(self) -> str:
        return f"Body(status={self.status}, type={self.type}, {len(self.data)} bytes)"


def build(answer: Answer, errors: Mapping[int, ModelError], *, items: int, accept: str, max_bytes: int) -> Body:
    """Build the body of a job that was served.

    Args:
        answer: what its model computed.
        errors: by index of the input that failed.
        items: inputs of the job.
        accept: content type that the tenant asked for.
        max_bytes: cap of the body.

    Returns:
        The body, its status ok, partial, or failed if no input was served.

    Raises:
        ResultTooLarge: the body came out over the cap; `Answer.least_bytes` judges only from below.
    """
    listed = _listed(errors)
    if len(errors) == items:
        return Body("failed", JSON_TYPE, bytearray(b'{"errors": ' + listed + b"}"))
    if accept == SAFETENSORS_TYPE:
        data = _safetensors(answer.tensors(), listed if errors else None)
    else:
        data = _json(answer.members(errors.keys()), listed)
    if len(data) > max_bytes:
        raise ResultTooLarge("result is over the body cap")
    return Body("partial" if errors else "ok", accept, data)


def failed(code: str) -> Body:
    """Build the body of a job that failed as a whole with this code of a ModelError."""
    return Body("failed", JSON_TYPE, bytearray(json.dumps({"errors": [{"code": code}]}).encode()))


def _listed(errors: Mapping[int, ModelError]) -> bytes:
    return json.dumps([{"index": index, "code": errors[index].code} for index in sorted(errors)]).encode()


def _json(members: Mapping[str, Buffer], errors: bytes) -> bytearray:
    data = bytearray(b"{")
    for name, text in members.items():
        data += json.dumps(name).encode() + b": "
        data += text
        data += b", "
    data += b'"errors": ' + errors + b"}"
    return data


def _safetensors(tensors: Tensors, errors: bytes | None) -> bytearray:
    """Lay out tensors: u64 little-endian header length ‖ JSON header ‖ data (safetensors, "Format").

    Written here because the library returns immutable bytes, which could not be zeroed.
    """
    header: dict[str, object] = {}
    end = 0
    for name, array in tensors.arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _DTYPES[array.dtype.str], "shape": list(array.shape), "data_offsets": [start, end]}
    metadata = tensors.metadata if errors is None else {**tensors.metadata, "errors": errors.decode()}
    if metadata:
        header["__metadata__"] = metadata
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES)
    data = bytearray(len(text).to_bytes(8, "little") + text)
    for array in tensors.arrays.values():
        data += np.ascontiguousarray(array).data.cast("B")
    return data
