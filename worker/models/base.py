"""What the engine asks of a model, and the two values that pass between them.

The engine knows nothing else of a model: a new architecture is a new class with these members and an entry in
`worker.models.registry`.

May import: the standard library, numpy, mrgc.errors. Called by worker.engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mrgc.errors import ModelError

#: Token ids of one input: int32 (T,), special tokens included.
Ids = NDArray[np.int32]
#: One row per input: float32 (n, D).
Embeddings = NDArray[np.float32]


class Tokens(NamedTuple):
    """One input, tokenised, and cut to the model's limit if it was longer."""

    ids: Ids
    is_cut: bool

    def __repr__(self) -> str:
        return f"Tokens({len(self.ids)} ids, is_cut={self.is_cut})"


class Model(Protocol):
    """A loaded model. Its methods may be called from different threads, each from one at a time."""

    @property
    def name(self) -> str:
        """Name that tenants ask for."""

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest file's bytes, hex; goes into every result header."""

    @property
    def dimensions(self) -> int:
        """D, width of one embedding."""

    @property
    def max_tokens(self) -> int:
        """Most tokens of one input, special tokens included."""

    def tokenise(self, inputs: Sequence[object]) -> list[Tokens | ModelError]:
        """Turn inputs into ids, one outcome per input in order.

        Returns:
            Tokens, or the InputInvalid of an input that is not text; an error never spreads to another input.
        """

    def forward(self, rows: Sequence[Ids]) -> Embeddings:
        """Run one token batch.

        Returns:
            float32 (len(rows), D) in the order of the rows. The bits of a row do not depend on its batch mates.

        Raises:
            DeviceOutOfMemory: the batch does not fit the device; the caller may halve it.
        """
