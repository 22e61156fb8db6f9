"""The engine with a model that does no maths: `python -m bench.queues.null_engine`.

A composition root: everything but the model is the product's own engine, hardening included. The model's answer is the
same for every text, already written: what writing numbers costs is measured by bench.inference.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

import numpy as np

from mrgc.errors import InputInvalid, ModelError
from mrgc.wire.strict_cbor import Buffer
from worker.engine import hardening
from worker.models.answers import FLOAT32_BYTES, ensure_no_parameters
from worker.models.base import Answer, Embeddings, Ids, Output, Tensors, Tokens

NAME: Final = "null"
#: SHA-256 of a manifest that does not exist; a result header must name one (docs/spec.md §4).
DIGEST: Final = "0" * 64
DIMENSIONS: Final = 16
VALUE: Final = 0.25
#: Such a row has length 1.
_ROW: Final = json.dumps([VALUE] * DIMENSIONS).encode()


class NullAnswer:
    """A `worker.models.base.Answer` that is known before it is asked for.

    Args:
        items: inputs of the job.
    """

    extras: Sequence[str] = ()

    def __init__(self, items: int) -> None:
        self._items = items

    def expect(self, place: int, tokens: Tokens) -> None:
        """See `worker.models.base.Answer`."""

    def least_bytes(self, accept: str) -> int:  # noqa: ARG002  tensors are longer
        """See `worker.models.base.Answer`."""
        return self._items * DIMENSIONS * FLOAT32_BYTES

    def put(self, place: int, output: Output) -> None:
        """See `worker.models.base.Answer`."""

    def members(self, failed: AbstractSet[int]) -> Mapping[str, Buffer]:
        """See `worker.models.base.Answer`."""
        rows = (b"null" if place in failed else _ROW for place in range(self._items))
        return {"embeddings": b"[" + b", ".join(rows) + b"]"}

    def tensors(self) -> Tensors:
        """See `worker.models.base.Answer`."""
        return Tensors({"embeddings": np.full((self._items, DIMENSIONS), VALUE, dtype="<f4")}, {})

    def wipe(self) -> None:
        """See `worker.models.base.Answer`."""


class NullModel:
    """A `worker.models.base.Model` whose answer is the same for every text."""

    name = NAME
    digest = DIGEST
    dimensions = DIMENSIONS
    max_tokens = 16
    vocabulary = 0

    def answer(self, items: int, parameters: Mapping[str, object]) -> Answer:
        """See `worker.models.base.Model.answer`."""
        ensure_no_parameters(parameters)
        return NullAnswer(items)

    def tokenise(self, inputs: Sequence[object]) -> list[Tokens | ModelError]:
        """Give every text one token."""
        return [
            Tokens(np.zeros(1, dtype=np.int32), is_cut=False) if type(text) is str else InputInvalid("not text")
            for text in inputs
        ]

    def forward(self, rows: Sequence[Ids]) -> Embeddings:
        """Answer without looking at the rows."""
        return np.full((len(rows), DIMENSIONS), VALUE, dtype=np.float32)


def main() -> int:
    """Serve until SIGTERM; returns the exit code."""
    hardening.use_erasing_allocator(os.environ)
    hardening.forbid_dumps()
    from worker.engine import process  # noqa: PLC0415  as in worker.engine.__main__: hardening comes first
    from worker.models.registry import Registry  # noqa: PLC0415

    return process.run(os.environ, load=lambda *_args, **_options: Registry([NullModel()]))


if __name__ == "__main__":
    sys.exit(main())
