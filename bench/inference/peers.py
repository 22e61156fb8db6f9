"""sentence-transformers on the same texts and weights: as its users call it, and as padding services batch.

Bias, all in the peers' favour: no progress bar; its own sort by length over all texts, which a service that answers in
order of arrival cannot do; the best batch size is looked for on texts that are measured afterwards; OpenMP's waiting
threads sleep. Tokenising is included on both sides.

May import: everything. It takes seconds to import its peer, so that happens in the constructor.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import torch

from worker.models.base import Embeddings, Ids
from worker.models.fetch_minilm import package_folder

DEFAULT_BATCH: Final = 32
SWEEP: Final = (8, 16, 32, 64)
SWEEPS: Final = 2  #: The better one counts, so that a neighbour's moment does not choose the batch size.
#: Tokens of one sorted batch, padding included; the fastest of 1k to 8k (docs/adr/0007).
SORTED_BUDGET_TOKENS: Final = 2_048

Embed = Callable[[Sequence[str]], Embeddings]


class Peer:
    """A loaded sentence-transformers model.

    Args:
        dtype: what it computes in.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from sentence_transformers import SentenceTransformer  # noqa: PLC0415  see the module's docstring

            self._model = SentenceTransformer(str(package_folder()), device="cpu").to(dtype)

    def encode(self, texts: Sequence[str], batch: int) -> Embeddings:
        """Call it as its documentation does, with this batch size."""
        found = self._model.encode(
            list(texts),
            batch_size=batch,
            normalize_embeddings=True,
            show_progress_bar=False,
            convert_to_tensor=True,
        )
        return np.asarray(found.float().numpy(), dtype=np.float32)

    def encode_arriving(self, texts: Sequence[str]) -> Embeddings:
        """Serve in order of arrival, 32 at a time, padded to the longest of each 32."""
        return np.concatenate([self.encode(chunk, DEFAULT_BATCH) for chunk in _chunks(texts, DEFAULT_BATCH)])

    def encode_sorted(self, texts: Sequence[str], rows: Sequence[Ids]) -> Embeddings:
        """Sort all by their number of tokens and cut by a budget of padded tokens."""
        embeddings = np.empty((len(texts), self.encode(texts[:1], 1).shape[1]), dtype=np.float32)
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        for places in _budgeted(order, [len(row) for row in rows]):
            embeddings[places] = self.encode([texts[place] for place in places], len(places))
        return embeddings

    def best_batches(self, texts: Sequence[str]) -> dict[int, float]:
        """Return the texts per second of every batch size of SWEEP, the fastest first."""
        rates = dict.fromkeys(SWEEP, 0.0)
        for batch in SWEEP * SWEEPS:
            start_s = time.perf_counter()
            self.encode(texts, batch)
            rates[batch] = max(rates[batch], len(texts) / (time.perf_counter() - start_s))
        return dict(sorted(rates.items(), key=lambda pair: -pair[1]))


def _chunks(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (texts[start : start + size] for start in range(0, len(texts), size))


def _budgeted(order: Iterable[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Cut places that are sorted by length, so that each cut padded to its last one fits the budget."""
    batch: list[int] = []
    for place in order:
        if batch and lengths[place] * (len(batch) + 1) > SORTED_BUDGET_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
