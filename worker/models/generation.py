"""What a job may ask of a model that generates, and how it travels to the forward pass (docs/spec.md §3).

Inputs of different jobs share a token batch, and each may be sampled in another way. A model sees nothing of a job but
its rows, so each row begins with the parameters of its job, PREFIX numbers long. The engine never looks into ids.

Called by worker.models.generator. May import: the standard library, numpy, mrgc.errors, mrgc.wire, worker.models.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from mrgc.errors import PayloadError
from worker.models.base import Ids, Output, Tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from mrgc.wire.strict_cbor import Buffer
    from worker.models.base import Tokens

#: Numbers at the head of a row.
PREFIX: Final = 5
MAX_NEW_TOKENS: Final = 2_048
MAX_TEMPERATURE: Final = 2.0
MAX_TOP_K: Final = 1_000
MAX_SEED: Final = (1 << 31) - 1
#: `null, ` or `"", ` of each text, docs/spec.md §3.
TEXT_BYTES: Final = 4


class Sampling(NamedTuple):
    """How the texts of one job are drawn. The defaults draw nothing: each token is the likeliest."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    #: 0 is all.
    top_k: int = 0
    seed: int = 0

    @classmethod
    def of(cls, parameters: Mapping[str, object]) -> Sampling:
        """Read a job's own parameters.

        Raises:
            PayloadError: one is unknown, of another type or out of bounds.
        """
        if not parameters.keys() <= set(cls._fields):
            raise PayloadError("payload has an unknown parameter")
        temperature, top_p = parameters.get("temperature", 0.0), parameters.get("top_p", 1.0)
        numbers = {
            "max_new_tokens": _whole(parameters, "max_new_tokens", 128, within=(1, MAX_NEW_TOKENS)),
            "top_k": _whole(parameters, "top_k", 0, within=(0, MAX_TOP_K)),
            "seed": _whole(parameters, "seed", 0, within=(0, MAX_SEED)),
        }
        if type(temperature) not in (int, float) or type(top_p) not in (int, float):
            raise PayloadError("payload has a parameter of a value that is not served")
        return cls(temperature=_within(temperature, 0.0, MAX_TEMPERATURE), top_p=_within(top_p, 0.01, 1.0), **numbers)

    def head(self) -> Ids:
        """Return the numbers that a row begins with: int32 (PREFIX,)."""
        fractions = np.array([self.temperature, self.top_p], dtype=np.float32).view(np.int32)
        return np.array([self.max_new_tokens, *fractions, self.top_k, self.seed], dtype=np.int32)

    @classmethod
    def of_row(cls, row: Ids) -> Sampling:
        """Read what `head` wrote; fractions come back as float32."""
        temperature, top_p = (float(number) for number in row[1:3].copy().view(np.float32))
        return cls(int(row[0]), temperature, top_p, int(row[3]), int(row[4]))


class TextAnswer:
    """One text per input.

    Args:
        items: inputs of the job.
        sampling: how they are drawn.
    """

    extras: Sequence[str] = ()

    def __init__(self, items: int, sampling: Sampling) -> None:
        self._items = items
        self._sampling = sampling
        #: UTF-8, by place; absent where the input failed.
        self._texts: dict[int, bytearray] = {}

    def expect(self, place: int, tokens: Tokens) -> None:  # noqa: ARG002  all places of a job are drawn alike
        """See `worker.models.base.Answer`; the row gets its parameters here."""
        tokens.ids[:PREFIX] = self._sampling.head()

    def least_bytes(self, accept: str) -> int:  # noqa: ARG002  the same for both forms
        """See `worker.models.base.Answer`; any text may come out empty, in either form."""
        return self._items * TEXT_BYTES

    def put(self, place: int, output: Output) -> None:
        """See `worker.models.base.Answer`."""
        self._texts[place] = bytearray(output.tobytes())

    def members(self, failed: AbstractSet[int]) -> Mapping[str, Buffer]:
        """See `worker.models.base.Answer`."""
        written = bytearray(b"[")
        for place in range(self._items):
            written += b", " if place else b""
            written += b"null" if place in failed else _json_text(self._texts[place])
        return {"texts": written + b"]"}

    def tensors(self) -> Tensors:
        """See `worker.models.base.Answer`: the texts one after another, and how many bytes each has."""
        texts = [self._texts.get(place, bytearray()) for place in range(self._items)]
        lengths = np.array([len(text) for text in texts], dtype="<u4")
        return Tensors({"texts": np.frombuffer(bytearray().join(texts), dtype=np.uint8), "lengths": lengths}, {})

    def wipe(self) -> None:
        """See `worker.models.base.Answer`."""
        for text in self._texts.values():
            text[:] = bytes(len(text))


def _json_text(text: bytearray) -> bytes:
    return json.dumps(text.decode(), ensure_ascii=False).encode()


def _whole(parameters: Mapping[str, object], name: str, default: int, *, within: tuple[int, int]) -> int:
    value = parameters.get(name, default)
    if type(value) is not int or not within[0] <= value <= within[1]:
        raise PayloadError("payload has a parameter of a value that is not served")
    return value


def _within(value: object, least: float, most: float) -> float:
    # Written so that NaN, which compares false with everything, is refused too.
    if not isinstance(value, int | float) or not least <= value <= most:
        raise PayloadError("payload has a parameter of a value that is not served")
    return float(value)
