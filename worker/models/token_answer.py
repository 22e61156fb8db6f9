"""Answers token by token: rows of scores for every token of an input, and where in its text each is (docs/spec.md §3).

Called by worker.models.embedder; implements `worker.models.base.Answer`. May import: the standard library, numpy,
mrgc.wire, worker.models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mrgc.wire.headers import JSON_TYPE
from worker.models import float_json
from worker.models.answers import FLOAT32_BYTES, SCORE_JSON_BYTES, names
from worker.models.base import Tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from mrgc.wire.strict_cbor import Buffer
    from worker.models.base import Embeddings, Output, Tokens


class TokenAnswer:
    """One row of scores per token.

    Args:
        items: inputs of the job.
        labels: names of the numbers in a row.
    """

    extras: Sequence[str] = ()

    def __init__(self, items: int, labels: Sequence[str]) -> None:
        self._items = items
        self._labels = labels
        self._tokens = 0
        #: By place: float32 (T, labels), uint32 (T, 2); the latter only where the input was a text.
        self._scores: dict[int, Embeddings] = {}
        self._offsets: dict[int, NDArray[np.uint32]] = {}

    def expect(self, place: int, tokens: Tokens) -> None:
        """See `worker.models.base.Answer`."""
        self._tokens += len(tokens.ids)
        if tokens.offsets is not None:
            self._offsets[place] = tokens.offsets

    def least_bytes(self, accept: str) -> int:
        """See `worker.models.base.Answer`; an input has one token at least."""
        number_bytes = SCORE_JSON_BYTES if accept == JSON_TYPE else FLOAT32_BYTES
        return max(self._items, self._tokens) * len(self._labels) * number_bytes

    def put(self, place: int, output: Output) -> None:
        """See `worker.models.base.Answer`."""
        self._scores[place] = output.copy()

    def members(self, failed: AbstractSet[int]) -> Mapping[str, Buffer]:
        """See `worker.models.base.Answer`."""
        places = [place for place in range(self._items) if place not in failed]
        members = {"labels": names(self._labels)}
        members["scores"] = self._joined({place: float_json.encode_rows(self._scores[place]) for place in places})
        if self._offsets:
            # Digits, commas and brackets as Python writes them are JSON.
            texts = {place: str(self._offsets[place].tolist()).encode() for place in places}
            members["offsets"] = self._joined(texts)
        return members

    def tensors(self) -> Tensors:
        """See `worker.models.base.Answer`."""
        places = sorted(self._scores)
        lengths = np.zeros(self._items, dtype=np.uint32)
        lengths[places] = [len(self._scores[place]) for place in places]
        arrays: dict[str, NDArray[np.float32] | NDArray[np.uint32]] = {
            "scores": np.concatenate([self._scores[place] for place in places]),
            "lengths": lengths,
        }
        if self._offsets:
            arrays["offsets"] = np.concatenate([self._offsets[place] for place in places])
        return Tensors(arrays, {"labels": names(self._labels).decode()})

    def wipe(self) -> None:
        """See `worker.models.base.Answer`."""
        for array in (*self._scores.values(), *self._offsets.values()):
            array.fill(0)

    def _joined(self, texts: Mapping[int, Buffer]) -> bytes:
        return b"[" + b", ".join(texts.get(place, b"null") for place in range(self._items)) + b"]"
