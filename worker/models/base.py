"""What the engine asks of a model, and the values that pass between them.

    payload ──answer──► Answer ◄──expect── Tokens ◄──tokenise── inputs
                          │ ◄──put── Outputs ◄──forward── ids of a token batch
                          └──members | tensors──► result body

The engine knows nothing else of a model: neither its architecture nor what its answers look like. A new architecture is
a new class with the members of `Model` and an entry in `worker.models.registry`; `worker.models.answers` has answers
for models that give numbers.

May import: the standard library, numpy, mrgc.errors, mrgc.wire. Called by worker.engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from mrgc.errors import ModelError
    from mrgc.wire.strict_cbor import Buffer

#: Token ids of one input: int32 (T,), special tokens included.
Ids = NDArray[np.int32]
#: One row per input: float32 (n, D).
Embeddings = NDArray[np.float32]
#: What one input came to: float32 (D,), float32 (T, D) of a model that answers every token, or uint8 (bytes,) of text.
Output = NDArray[Any]
#: One output per input of a token batch: a matrix of equally long ones, or a list. Zeroed by the engine after use.
Outputs = NDArray[Any] | list[Output]


class Tokens(NamedTuple):
    """One input, tokenised, and cut to the model's limit if it was longer."""

    ids: Ids
    is_cut: bool
    #: Start and end of each token in the text, uint32 (T, 2); only of models that answer every token.
    offsets: NDArray[np.uint32] | None = None

    def __repr__(self) -> str:
        return f"Tokens({len(self.ids)} ids, is_cut={self.is_cut})"


class Tensors(NamedTuple):
    """An answer as safetensors: little-endian arrays by name, and texts for `__metadata__`."""

    arrays: dict[str, NDArray[Any]]
    metadata: dict[str, str]

    def __repr__(self) -> str:
        return f"Tensors({', '.join(self.arrays)})"


class Answer(Protocol):
    """The answer to one job as it comes together. Made by the job's model, touched by one thread at a time.

    A place is an input's index in its job; `extras` have the places behind those of the inputs. Nothing of a size that
    a tenant chooses is allocated before the first `put`, so that a job can be refused for the size of its result first.
    """

    @property
    def extras(self) -> Sequence[str]:
        """Texts that the model has to see beside the inputs. If one of them fails, the job fails."""

    def expect(self, place: int, tokens: Tokens) -> None:
        """Note that what stands at a place was tokenised, and will be run unless the job is refused before."""

    def least_bytes(self, accept: str) -> int:
        """Return a size that no result body comes out below if no input fails (docs/spec.md §3).

        It may grow with what is expected; it is asked before anything is, and again before the forward pass.

        Args:
            accept: content type of the body.
        """

    def put(self, place: int, output: Output) -> None:
        """Copy what the model computed for a place; `output` is zeroed by the caller."""

    def members(self, failed: AbstractSet[int]) -> Mapping[str, Buffer]:
        """Write the JSON text of each member of a result body, `errors` excepted.

        Args:
            failed: places of the inputs that have no output, at most all but one.
        """

    def tensors(self) -> Tensors:
        """Return the result body as safetensors; where an input failed, its numbers are zero or absent."""

    def wipe(self) -> None:
        """Zero what was put."""


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
        """Float32 numbers that an input is answered with at least: D, width of one embedding, or 0 if it is none."""

    @property
    def max_tokens(self) -> int:
        """Most tokens of one input, special tokens included."""

    @property
    def vocabulary(self) -> int:
        """Ids of pre-tokenised inputs are below it; 0 if the model takes texts only."""

    def answer(self, items: int, parameters: Mapping[str, object]) -> Answer:
        """Begin the answer to one job.

        Args:
            items: inputs of the job, 1..16,384.
            parameters: those of the payload that are this model's own (docs/spec.md §3).

        Raises:
            PayloadError: this model does not know a parameter, or does not serve its value.
        """

    def tokenise(self, inputs: Sequence[object]) -> list[Tokens | ModelError]:
        """Turn inputs into ids, one outcome per input in order.

        Returns:
            Tokens, or the InputInvalid of an input that is not text; an error never spreads to another input.
        """

    def forward(self, rows: Sequence[Ids]) -> Outputs:
        """Run one token batch.

        Returns:
            One output per row, in order, copied out of the device once. The bits of an output do not depend on the
            row's batch mates.

        Raises:
            DeviceOutOfMemory: the batch does not fit the device; the caller may halve it.
        """
