"""What the machine multiplies: matrix products of the model's own shapes and number type, and nothing else.

Done in two ways, and the faster counts: each product spread over all threads, as torch does by itself, and a product
per thread, as the encoder does.

May import: the standard library, torch, worker.models.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from worker.models.lanes import PIECE_TOKENS, Lanes
from worker.models.manifest import CONFIG

#: Rows of a product that is spread; a product per thread has as many as a piece of a token batch.
TOKENS: Final = 4_096
LEAST_S: Final = 1.5


class Gemm:
    """The four linear layers of one encoder layer, over random numbers.

    Args:
        folder: of a model; its config.json decides the shapes.
        dtype: what to multiply in.
    """

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        config = json.loads((folder / CONFIG).read_bytes())
        width, inner = config["hidden_size"], config["intermediate_size"]
        shapes = [(3 * width, width), (width, width), (inner, width), (width, inner)]
        self._weights = [torch.randn(shape, dtype=dtype) for shape in shapes]
        self._rows = [torch.randn(TOKENS, shape[1], dtype=dtype) for shape in shapes]
        self._lanes = Lanes()

    def flop_per_s(self) -> float:
        """Multiply for at least LEAST_S in each way and return the faster rate."""
        of_lanes = self._lanes.run(self._multiply, [PIECE_TOKENS] * self._lanes.count)
        return max(self._multiply(TOKENS), sum(of_lanes))

    @torch.inference_mode()
    def _multiply(self, tokens: int) -> float:
        products: list[tuple[Tensor, Tensor]] = [
            (rows[:tokens], weights) for rows, weights in zip(self._rows, self._weights, strict=True)
        ]
        flop = sum(2 * tokens * weights.numel() for weights in self._weights)
        start_s, turns = time.perf_counter(), 0
        while (took_s := time.perf_counter() - start_s) < LEAST_S or not turns:
            for rows, weights in products:
                functional.linear(rows, weights)
            turns += 1
        return turns * flop / took_s
