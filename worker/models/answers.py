"""Answers in numbers: one row per input, as `embeddings` or `scores` (docs/spec.md §3).

Called by the models of worker.models; implements `worker.models.base.Answer`. May import: the standard library, numpy,
mrgc.errors, mrgc.wire, worker.models.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import numpy as np

from mrgc.errors import PayloadError
from mrgc.wire.headers import JSON_TYPE
from worker.models import float_json
from worker.models.base import Tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from mrgc.wire.strict_cbor import Buffer
    from worker.models.base import Embeddings, Output, Tokens

#: What a number of a unit vector takes as JSON, comma included, docs/spec.md §3.
EMBEDDING_JSON_BYTES: Final = 8
#: The shortest number that may be a score, as `0.5` or `1e+0`, and its comma.
SCORE_JSON_BYTES: Final = 4
FLOAT32_BYTES: Final = 4


class Rows:
    """Rows of numbers, one per place, that come one by one.

    Args:
        places: how many.
        width: numbers in each.
    """

    def __init__(self, places: int, width: int) -> None:
        self._shape = (places, width)
        #: float32 (places, width), zero where nothing came.
        self.matrix: Embeddings = np.empty((0, width), dtype=np.float32)

    def put(self, place: int, row: Output) -> None:
        """Copy a row; the first one allocates them all."""
        if not len(self.matrix):
            self.matrix = np.zeros(self._shape, dtype=np.float32)
        self.matrix[place] = row

    def wipe(self) -> None:
        """Zero what came."""
        self.matrix.fill(0)


class EmbeddingAnswer:
    """One embedding per input.

    Args:
        items: inputs of the job.
        dimensions: D.
    """

    extras: Sequence[str] = ()

    def __init__(self, items: int, dimensions: int) -> None:
        self._numbers = items * dimensions
        self._rows = Rows(items, dimensions)
        self.put, self.wipe = self._rows.put, self._rows.wipe

    def expect(self, place: int, tokens: Tokens) -> None:
        """See `worker.models.base.Answer`; the size does not depend on the tokens."""

    def least_bytes(self, accept: str) -> int:
        """See `worker.models.base.Answer`."""
        return self._numbers * (EMBEDDING_JSON_BYTES if accept == JSON_TYPE else FLOAT32_BYTES)

    def members(self, failed: AbstractSet[int]) -> Mapping[str, Buffer]:
        """See `worker.models.base.Answer`."""
        return {"embeddings": float_json.encode_rows(self._rows.matrix, nulls=failed)}

    def tensors(self) -> Tensors:
        """See `worker.models.base.Answer`."""
        return Tensors({"embeddings": self._rows.matrix}, {})


class ScoreAnswer:
    """One row of scores per input.

    Args:
        items: inputs of the job.
        labels: names of the numbers in a row.
    """

    extras: Sequence[str] = ()

    def __init__(self, items: int, labels: Sequence[str]) -> None:
        self._numbers = items * len(labels)
        self._labels = labels
        self._rows = Rows(items, len(labels))
        self.put, self.wipe = self._rows.put, self._rows.wipe

    def expect(self, place: int, tokens: Tokens) -> None:
        """See `worker.models.base.Answer`; the size does not depend on the tokens."""

    def least_bytes(self, accept: str) -> int:
        """See `worker.models.base.Answer`."""
        return self._numbers * (SCORE_JSON_BYTES if accept == JSON_TYPE else FLOAT32_BYTES)

    def members(self, failed: AbstractSet[int]) -> Mapping[str, Buffer]:
        """See `worker.models.base.Answer`."""
        return {"labels": names(self._labels), "scores": float_json.encode_rows(self._rows.matrix, nulls=failed)}

    def tensors(self) -> Tensors:
        """See `worker.models.base.Answer`."""
        return Tensors({"scores": self._rows.matrix}, {"labels": names(self._labels).decode()})


def names(labels: Sequence[str]) -> bytes:
    """Write labels as a JSON array, in ASCII."""
    return json.dumps(list(labels)).encode()


def ensure_no_parameters(parameters: Mapping[str, object]) -> None:
    """Raise PayloadError if a job has parameters that its model does not know."""
    if parameters:
        raise PayloadError("payload has an unknown parameter")
