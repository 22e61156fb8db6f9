"""Result bodies: embeddings and per-input errors as JSON or safetensors (docs/spec.md §3).

May import: the standard library, numpy, mrgc.errors, mrgc.wire, worker.engine.float_json. Called by
worker.engine.jobs.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from mrgc.errors import ModelError, ResultTooLarge
from mrgc.wire.headers import JSON_TYPE, SAFETENSORS_TYPE
from worker.engine import float_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.models.base import Embeddings

#: Bytes per number, docs/spec.md §3.
_LEAST_BYTES_PER_NUMBER: Final = {JSON_TYPE: 8, SAFETENSORS_TYPE: 4}
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


def least_bytes(items: int, dimensions: int, *, accept: str) -> int:
    """Return a size that no body of `items` embeddings comes out below, known before any inference."""
    return items * dimensions * _LEAST_BYTES_PER_NUMBER[accept]


def build(embeddings: Embeddings, errors: Mapping[int, ModelError], *, accept: str, max_bytes: int) -> Body:
    """Build the body of a job that was served.

    Args:
        embeddings: float32 (items, D); a failed input's row is zero.
        errors: by index of the input that failed.
        accept: content type that the tenant asked for.
        max_bytes: cap of the body.

    Returns:
        The body, its status ok, partial, or failed if no input was served.

    Raises:
        ResultTooLarge: the body came out over the cap; `least_bytes` judges only from below.
    """
    listed = _listed(errors)
    if len(errors) == len(embeddings):
        return Body("failed", JSON_TYPE, bytearray(b'{"errors": ' + listed + b"}"))
    if accept == SAFETENSORS_TYPE:
        data = _safetensors(embeddings, listed if errors else None)
    else:
        data = bytearray(b'{"embeddings": ')
        data += float_json.encode_rows(embeddings, nulls=errors.keys())
        data += b', "errors": ' + listed + b"}"
    if len(data) > max_bytes:
        raise ResultTooLarge("result is over the body cap")
    return Body("partial" if errors else "ok", accept, data)


def failed(code: str) -> Body:
    """Build the body of a job that failed as a whole with this code of a ModelError."""
    return Body("failed", JSON_TYPE, bytearray(json.dumps({"errors": [{"code": code}]}).encode()))


def _listed(errors: Mapping[int, ModelError]) -> bytes:
    return json.dumps([{"index": index, "code": errors[index].code} for index in sorted(errors)]).encode()


def _safetensors(embeddings: Embeddings, errors: bytes | None) -> bytearray:
    """Lay out one tensor: u64 little-endian header length ‖ JSON header ‖ data (safetensors, "Format").

    Written here because the library returns immutable bytes, which could not be zeroed.
    """
    tensor = {"dtype": "F32", "shape": list(embeddings.shape), "data_offsets": [0, embeddings.nbytes]}
    header: dict[str, object] = {"embeddings": tensor}
    if errors is not None:
        header["__metadata__"] = {"errors": errors.decode()}
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES)
    data = bytearray(len(text).to_bytes(8, "little") + text)
    data += np.ascontiguousarray(embeddings, dtype="<f4").data.cast("B")
    return data
