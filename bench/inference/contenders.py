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
from bench.inference.rounds import Measured, Turn
from bench.inference.stage import Stage
from bench.inference.whole_path import Run, WholePath
from mrgc.wire.headers import JSON_TYPE, SAFETENSORS_TYPE
from worker.models.base import Embeddings
from worker.models.fetch_minilm import MINILM

#: Token ids to embeddings.
MODEL: Final = "model alone"
PATH_16: Final = "whole path, 16 texts per job"
PATH_1: Final = "whole path, 1 text per job"
PATH_16_TENSOR: Final = "whole path, 16, safetensors"
BEST: Final = "sentence-transformers, best batch"
DEFAULT: Final = "sentence-transformers, default"
SORTED: Final = "padded, sorted, 2k tokens"
ARRIVING: Final = "padded, 32 as they arrive"
GEMM: Final = "GEMM, GFLOP/s"
#: The contenders whose frames run from token ids, on all texts.
PATHS: Final = (PATH_16, PATH_1, PATH_16_TENSOR)
#: Those whose frames tokenise, as they do, on the peers' texts.
PEERS: Final = (BEST, DEFAULT, SORTED, ARRIVING)

#: Texts that the best batch size is looked for on.
SWEEP_TEXTS: Final = 64
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
        self._work = Work.of_folder(folder)
        #: The last embeddings: of the model alone, and as a tenant opened them, by contender.
        self.embeddings: dict[str, Embeddings] = {}
        self.runs: dict[str, list[Run]] = {name: [] for name in PATHS}
        #: Processor time of the model alone, seconds per run over all texts.
        self._model_cpu_s: list[float] = []
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
        texts = self._peer_texts
        rows = self._rows[: len(texts)]
        return {
            PATH_16: lambda: self._whole_path(PATH_16, 16, JSON_TYPE),
            PATH_1: lambda: self._whole_path(PATH_1, 1, JSON_TYPE),
            PATH_16_TENSOR: lambda: self._whole_path(PATH_16_TENSOR, 16, SAFETENSORS_TYPE),
            GEMM: self._gemm_beside,
            BEST: lambda: self._beside(lambda: self._peer.encode(texts, self.best_batch)),
            DEFAULT: lambda: self._beside(lambda: self._peer.encode(texts, DEFAULT_BATCH)),
            SORTED: lambda: self._beside(lambda: self._peer.encode_sorted(texts, rows)),
            ARRIVING: lambda: self._beside(lambda: self._peer.encode_arriving(texts)),
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

    def model_cpu_us(self) -> float:
        """Return the median over its runs of the model's processor time, microseconds per text."""
        return statistics.median(self._model_cpu_s) / len(self._rows) * 1e6

    def _whole_path(self, name: str, texts_per_job: int, accept: str) -> Measured:
        is_opened = name not in self.embeddings and accept == JSON_TYPE
        middle = len(self._rows) // 2
        cpu_s, start_s = time.process_time(), time.perf_counter()
        before = ours.forward(self._model, self._rows[:middle])
        model_s, model_cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_s
        run = self._path.run(texts_per_job, accept=accept, opened=is_opened, give_up_s=GIVE_UP_S)
        cpu_s, start_s = time.process_time(), time.perf_counter()
        after = ours.forward(self._model, self._rows[middle:])
        model_s += time.perf_counter() - start_s
        self._model_cpu_s.append(model_cpu_s + time.process_time() - cpu_s)
        self.runs[name].append(run)
        self.embeddings[MODEL] = np.concatenate([before, after])
        if is_opened:
            self.embeddings[name] = run.embeddings
        return Measured(run.texts_per_s, len(self._rows) / model_s)

    def _beside(self, act: Callable[[], object]) -> Measured:
        """Time a peer on its texts, framed by the model from texts to embeddings."""
        texts = self._peer_texts
        middle = len(texts) // 2
        ours_s = _wall_s(lambda: self._embed(texts[:middle]))
        peer_s = _wall_s(act)
        ours_s += _wall_s(lambda: self._embed(texts[middle:]))
        return Measured(len(texts) / peer_s, len(texts) / ours_s)

    def _gemm_beside(self) -> Measured:
        """Measure products on both sides of the model: they take less time than a frame should."""
        rows = self._rows[: len(self._peer_texts)]
        before = self._gemm.flop_per_s()
        model_s = _wall_s(lambda: ours.forward(self._model, rows))
        after = self._gemm.flop_per_s()
        return Measured((before + after) / 2 / 1e9, self._work.flop(rows) / model_s / 1e9)

    def _embed(self, texts: Sequence[str]) -> None:
        ours.forward(self._model, ours.tokenise(self._model, texts))


def _wall_s(act: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    act()
    return time.perf_counter() - start_s


def least_cosine(found: Embeddings, oracle: Embeddings) -> float:
    """Return the least cosine of any text's two embeddings; both are unit vectors."""
    return float((found.astype(np.float64) * oracle.astype(np.float64)).sum(axis=1).min())
