"""Who takes turns, each with its own unit, and what the figures need to know of them afterwards.

May import: everything.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch

from bench.inference import ours
from bench.inference.gemm import Gemm
from bench.inference.ours import Work
from bench.inference.peers import DEFAULT_BATCH, Peer
from bench.inference.rounds import Turn
from bench.inference.stage import Stage
from bench.inference.whole_path import Run, WholePath
from mrgc.wire.headers import JSON_TYPE, SAFETENSORS_TYPE
from worker.models.base import Embeddings
from worker.models.fetch_minilm import MINILM

#: Token ids to embeddings.
MODEL: Final = "mrgc model only"
#: Texts to embeddings, on the peers' texts.
OURS: Final = "mrgc texts"
PATH_16: Final = "mrgc whole path, 16 texts/job"
PATH_1: Final = "mrgc whole path, 1 text/job"
PATH_16_TENSOR: Final = "mrgc whole path, 16, safetensors"
BEST: Final = "sentence-transformers, best batch"
DEFAULT: Final = "sentence-transformers, default"
ARRIVING: Final = "padded, 32 as they arrive"
SORTED: Final = "padded, sorted, 2k tokens"
GEMM: Final = "GEMM, GFLOP/s"

#: Texts that the best batch size is looked for on.
SWEEP_TEXTS: Final = 128
WARM_TEXTS: Final = 64
GIVE_UP_S: Final = 600.0


class Settings(NamedTuple):
    """What is measured."""

    models: Path
    #: auto, bf16 or fp32.
    dtype: str
    texts: Sequence[str]
    #: The first so many texts go to the peers.
    peer_texts: int


class Contenders:
    """Everything loaded and warm.

    Args:
        settings: what is measured.
        stage: the standing service, for the whole path.
    """

    def __init__(self, settings: Settings, stage: Stage) -> None:
        self.settings = settings
        self.dtype = ours.dtype_of(settings.dtype)
        folder = settings.models / MINILM.name
        self._model = ours.load(settings.models, settings.dtype)
        self._rows = ours.tokenise(self._model, settings.texts)
        self._peer_texts = settings.texts[: settings.peer_texts]
        self._peer = Peer(self.dtype)
        self._gemm = Gemm(folder, self.dtype)
        self._path = WholePath(stage, settings.texts)
        self.flop = Work.of_folder(folder).flop(self._rows)
        #: The last embeddings of our own: by the model alone, and as a tenant opened them.
        self.embeddings: dict[str, Embeddings] = {}
        self.runs: dict[str, list[Run]] = {}
        WholePath(stage, settings.texts[:WARM_TEXTS]).run(1, give_up_s=GIVE_UP_S)
        #: Texts per second of the peer by batch size, the fastest first.
        self.swept = self._peer.best_batches(settings.texts[:SWEEP_TEXTS])
        self.best_batch = next(iter(self.swept))

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return sum(map(len, self._rows))

    def turns(self) -> Mapping[str, Turn]:
        """Return the contenders by name; GEMM counts in 10^9 operations per second, all others in texts."""
        peer_texts, peer_rows = self._peer_texts, self._rows[: len(self._peer_texts)]

        def texts_to_embeddings() -> object:
            return ours.forward(self._model, ours.tokenise(self._model, peer_texts))

        return {
            MODEL: self._model_only,
            PATH_16: lambda: self._whole_path(PATH_16, 16, JSON_TYPE),
            PATH_1: lambda: self._whole_path(PATH_1, 1, JSON_TYPE),
            PATH_16_TENSOR: lambda: self._whole_path(PATH_16_TENSOR, 16, SAFETENSORS_TYPE),
            GEMM: lambda: self._gemm.flop_per_s() / 1e9,
            OURS: lambda: self._on_peer_texts(texts_to_embeddings),
            BEST: lambda: self._on_peer_texts(lambda: self._peer.encode(peer_texts, self.best_batch)),
            DEFAULT: lambda: self._on_peer_texts(lambda: self._peer.encode(peer_texts, DEFAULT_BATCH)),
            SORTED: lambda: self._on_peer_texts(lambda: self._peer.encode_sorted(peer_texts, peer_rows)),
            ARRIVING: lambda: self._on_peer_texts(lambda: self._peer.encode_arriving(peer_texts)),
        }

    def oracle(self) -> Embeddings:
        """Return what sentence-transformers computes in float32 for all texts."""
        peer = self._peer if self.dtype == torch.float32 else Peer(torch.float32)
        rows = self._rows
        return peer.encode_sorted(self.settings.texts, rows)

    def cpu_us(self, name: str) -> dict[str, float]:
        """Return the median over the rounds of the processor time by process, microseconds per text."""
        runs = self.runs[name]
        return {part: statistics.median(run.cpu_us[part] for run in runs) for part in runs[0].cpu_us}

    def _model_only(self) -> float:
        start_s = time.perf_counter()
        self.embeddings[MODEL] = ours.forward(self._model, self._rows)
        return len(self._rows) / (time.perf_counter() - start_s)

    def _whole_path(self, name: str, texts_per_job: int, accept: str) -> float:
        is_opened = name not in self.embeddings and accept == JSON_TYPE
        run = self._path.run(texts_per_job, accept=accept, opened=is_opened, give_up_s=GIVE_UP_S)
        self.runs.setdefault(name, []).append(run)
        if is_opened:
            self.embeddings[name] = run.embeddings
        return run.texts_per_s

    def _on_peer_texts(self, act: Callable[[], object]) -> float:
        start_s = time.perf_counter()
        act()
        return len(self._peer_texts) / (time.perf_counter() - start_s)


def least_cosine(found: Embeddings, oracle: Embeddings) -> float:
    """Return the least cosine of any text's two embeddings; both are unit vectors."""
    return float((found.astype(np.float64) * oracle.astype(np.float64)).sum(axis=1).min())
