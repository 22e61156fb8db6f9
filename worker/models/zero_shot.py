"""Zero-shot classes: how near each input's embedding lies to those of the job's own labels (docs/spec.md §3).

Called by worker.models.embedder; implements `worker.models.base.Answer`. May import: the standard library, numpy,
mrgc.errors, mrgc.wire, worker.models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from mrgc.errors import PayloadError
from mrgc.wire.headers import JSON_TYPE
from worker.models import float_json
from worker.models.answers import FLOAT32_BYTES, SCORE_JSON_BYTES, Rows, ensure_no_parameters, names
from worker.models.base import Tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from mrgc.wire.strict_cbor import Buffer
    from worker.models.base import Embeddings, Tokens

MIN_LABELS, MAX_LABELS = 2, 64
#: What cosines are divided by before the softmax: the scale of 20 that contrastive encoders are trained with.
TEMPERATURE: Final = 0.05


def begin_zero_shot(items: int, dimensions: int, parameters: Mapping[str, object]) -> ZeroShotAnswer:
    """Begin the answer to a job with the parameter `labels`.

    Raises:
        PayloadError: the labels are not 2 to 64 different texts, or there are other parameters.
    """
    labels = parameters["labels"]
    ensure_no_parameters({name: value for name, value in parameters.items() if name != "labels"})
    if type(labels) is not list or not MIN_LABELS <= len(labels) <= MAX_LABELS:
        raise PayloadError("payload does not have 2 to 64 labels")
    if not all(type(label) is str for label in labels) or len(set(labels)) != len(labels):
        raise PayloadError("payload has labels that are no texts, or the same one twice")
    return ZeroShotAnswer(items, dimensions, labels)


class ZeroShotAnswer:
    """One row of scores per input, made once all embeddings are there.

    Args:
        items: inputs of the job.
        dimensions: D.
        labels: the job's own; embedded beside its inputs.
    """

    def __init__(self, items: int, dimensions: int, labels: Sequence[str]) -> None:
        self.extras = labels
        self._items = items
        self._dimensions = dimensions
        self._rows = Rows(items + len(labels), dimensions)
        self.put, self.wipe = self._rows.put, self._rows.wipe

    def expect(self, place: int, tokens: Tokens) -> None:
        """See `worker.models.base.Answer`; the size does not depend on the tokens."""

    def least_bytes(self, accept: str) -> int:
        """See `worker.models.base.Answer`; also bounds the embeddings, which are held until the labels' are there."""
        number_bytes = SCORE_JSON_BYTES if accept == JSON_TYPE else FLOAT32_BYTES
        return self._items * max(self._dimensions * FLOAT32_BYTES, len(self.extras) * number_bytes)

    def members(self, failed: AbstractSet[int]) -> Mapping[str, Buffer]:
        """See `worker.models.base.Answer`."""
        return {"labels": names(self.extras), "scores": float_json.encode_rows(self._scores(), nulls=failed)}

    def tensors(self) -> Tensors:
        """See `worker.models.base.Answer`."""
        scores = self._scores()
        # An input that failed has a zero embedding, which would score every label alike.
        scores[~self._rows.matrix[: self._items].any(axis=1)] = 0
        return Tensors({"scores": scores}, {"labels": names(self.extras).decode()})

    def _scores(self) -> Embeddings:
        """Return float32 (items, labels): the softmax of the cosines, which for unit vectors are the products."""
        embeddings, labels = self._rows.matrix[: self._items], self._rows.matrix[self._items :]
        scaled = embeddings @ labels.T / np.float32(TEMPERATURE)
        raised = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        scores: Embeddings = raised / raised.sum(axis=1, keepdims=True)
        return scores
