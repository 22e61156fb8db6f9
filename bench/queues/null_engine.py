"""The engine with a model that does no maths: `python -m bench.queues.null_engine`.

A composition root: everything but the model is the product's own engine, hardening included.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from mrgc.errors import InputInvalid, ModelError
from worker.engine import hardening
from worker.models.answers import EmbeddingAnswer, ensure_no_parameters
from worker.models.base import Answer, Embeddings, Ids, Tokens

NAME: Final = "null"
#: SHA-256 of a manifest that does not exist; a result header must name one (docs/spec.md §4).
DIGEST: Final = "0" * 64
#: Such rows have length 1, and numbers that JSON writes in full.
DIMENSIONS: Final = 16
VALUE: Final = 0.25


class NullModel:
    """A `worker.models.base.Model` whose answer is the same for every text."""

    name = NAME
    digest = DIGEST
    dimensions = DIMENSIONS
    max_tokens = 16
    vocabulary = 0

    def answer(self, items: int, parameters: Mapping[str, object]) -> Answer:
        """Answer with embeddings."""
        ensure_no_parameters(parameters)
        return EmbeddingAnswer(items, self.dimensions)

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
