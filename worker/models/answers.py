"""Answers in numbers: one row per input, as `embeddings` or `scores` (docs/spec.md §3).

Called by the models of worker.models; implements `worker.models.base.Answer`. May import: the standard library, numpy,
mrgc.errors, mrgc.wire, worker.models.
"""

from __future__ import annotations

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
FLOAT32_BYTES: Final = 4


class EmbeddingAnswer:
    """One embedding per input.

    Args:
        items: inputs of the job.
        dimensions: D.
    """

    extras: Sequence[str] = ()

    def __init__(self, items: int, dimensions: int) -> None:
        self._shape = (items, dimensions)
        #: float32 (items, D), rows of failed inputs zero.
        self._rows: Embeddings = np.empty((0, dimensions), dtype=np.float32)

    def expect(self, place: int, tokens: Tokens) -> None:
        """See `worker.models.base.Answer`; the size does not depend on the tokens."""

    def least_bytes(self, accept: str) -> int:
        """See `worker.models.base.Answer`."""
        items, dimensions = self._shape
        return items * dimensions * (EMBEDDING_JSON_BYTES if accept == JSON_TYPE else FLOAT32_BYTES)

    def put(self, place: int, output: Output) -> None:
        """See `worker.models.base.Answer`."""
        if not len(self._rows):
            self._rows = np.zeros(self._shape, dtype=np.float32)
        self._rows[place] = output

    def members(self, failed: AbstractSet[int]) -> Mapping[str, Buffer]:
        """See `worker.models.base.Answer`."""
        return {"embeddings": float_json.encode_rows(self._rows, nulls=failed)}

    def tensors(self) -> Tensors:
        """See `worker.models.base.Answer`."""
        return Tensors({"embeddings": self._rows}, {})

    def wipe(self) -> None:
        """See `worker.models.base.Answer`."""
        self._rows.fill(0)


def ensure_no_parameters(parameters: Mapping[str, object]) -> None:
    """Raise PayloadError if a job has parameters that its model does not know."""
    if parameters:
        raise PayloadError("payload has an unknown parameter")
