"""Our model without the service around it: texts to ids, ids to embeddings, and how much work that is.

May import: the standard library, numpy, torch, infra.docstrings, worker.models, worker.engine.packer. Called by
bench.inference and bench.gpu.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch

from infra import docstrings
from worker.engine.packer import Packer
from worker.models import registry
from worker.models.base import Embeddings, Ids, Model, Tokens
from worker.models.device import choose_dtype, has_native_bf16
from worker.models.fetch_minilm import MINILM
from worker.models.manifest import CONFIG

#: As in worker.settings.EngineSettings, so that both run the same token batches.
BUDGET_TOKENS: Final = 4_096


class Work(NamedTuple):
    """Useful floating-point operations of a BERT encoder; padding, softmax, norms and activations count as none."""

    #: Of the linear layers, per token: a multiplication and an addition per weight.
    per_token: int
    #: Of attention, per token and token attended to: L of them in a text of L tokens.
    per_pair: int

    @classmethod
    def of_folder(cls, folder: Path) -> Work:
        """Derive it from a model folder's config.json; 21.2 MFLOP per token and 9,216·L for MiniLM-L6."""
        config = json.loads((folder / CONFIG).read_bytes())
        width, inner = config["hidden_size"], config["intermediate_size"]
        layers = config["num_hidden_layers"]
        # Query, key, value and output are width × width; the feed-forward is width × inner and back.
        # Scores and their product with the values are width multiplications each per pair of tokens.
        return cls(layers * 2 * (4 * width * width + 2 * width * inner), layers * 4 * width)

    def flop(self, rows: Sequence[Ids]) -> int:
        """Return the useful operations of one forward pass over these rows."""
        return sum(self.per_token * len(row) + self.per_pair * len(row) ** 2 for row in rows)


def texts(count: int) -> list[str]:
    """Draw docstrings in an order without pattern: neighbours in a file are of like length."""
    found = docstrings.texts()
    random.Random(1).shuffle(found)  # noqa: S311  an order, not a secret
    return found[:count]


def dtype_of(wish: str) -> torch.dtype:
    """Return the number type that the engine takes for this setting on this machine."""
    return choose_dtype(wish, native_bf16=has_native_bf16(torch.device("cpu")))


def load(models: Path, dtype: str) -> Model:
    """Load all-MiniLM-L6-v2 as the engine does."""
    return registry.load(models, device="cpu", dtype=dtype).find(MINILM.name)


def tokenise(model: Model, texts: Sequence[str]) -> list[Ids]:
    """Tokenise texts, the over-long ones cut as the peer cuts them."""
    rows = [tokens.ids for tokens in model.tokenise(texts) if isinstance(tokens, Tokens)]
    assert len(rows) == len(texts)
    return rows


def pack(rows: Sequence[Ids], budget_tokens: int) -> Iterator[list[Ids]]:
    """Cut rows into token batches in order of arrival, with the engine's own packer."""
    packer: Packer[None, Ids] = Packer(budget_tokens)
    packer.add(None, [(row, len(row)) for row in rows])
    while (batch := packer.next_batch()) is not None:
        yield batch[1]


def forward(model: Model, rows: Sequence[Ids], *, until_s: float = float("inf")) -> Embeddings:
    """Run rows in token batches in order of arrival.

    Returns:
        float32 (n, D); n is below len(rows) only if time.perf_counter() passed `until_s`.
    """
    batches = pack(rows, BUDGET_TOKENS)
    done = []
    while time.perf_counter() < until_s and (batch := next(batches, None)) is not None:
        done.append(model.forward(batch))
    return np.concatenate(done)
