"""Text models on a device of its own queues: `TextEmbedder` with another way through the encoder.

Called by worker.models.registry for CUDA devices; implements `worker.models.base.Model` and
`worker.models.overlap.Overlapping`. May import: the standard library, numpy, torch, mrgc.errors, worker.models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from worker.models.cuda_attention import attend_padded, attend_varlen, has_flash
from worker.models.cuda_encoder import DeviceEncoder, pool_first, pool_mean
from worker.models.cuda_memory import overwrite_free
from worker.models.cuda_runner import DeviceRunner
from worker.models.device import out_of_memory_as_ours
from worker.models.embedder import TextEmbedder
from worker.models.manifest import CLASSIFY_TOKENS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from worker.models.base import Ids, Outputs
    from worker.models.cuda_attention import DeviceBatch
    from worker.models.overlap import Flight


class CudaEmbedder(TextEmbedder):
    """A BERT-family encoder with its head; takes batches once `warm_up` was called."""

    def launch(self, rows: Sequence[Ids]) -> Flight:
        """See `worker.models.overlap.Overlapping.launch`."""
        with out_of_memory_as_ours():
            flight = self.runner.launch(rows)
        return _TokenFlight(flight, rows) if self._task == CLASSIFY_TOKENS else flight

    def forward(self, rows: Sequence[Ids]) -> Outputs:
        """See `worker.models.base.Model.forward`."""
        return self.launch(rows).collect()

    def warm_up(self, budget_tokens: int) -> None:
        """See `worker.models.overlap.Overlapping.warm_up`.

        Raises:
            ConfigError: the weights do not give numbers.
        """
        head_width = self._config.hidden_size // self._config.num_attention_heads
        flash = has_flash(self.device, self._weights.words.dtype, head_width)
        self._device_encoder = DeviceEncoder(self._config, self._weights, attend_varlen if flash else attend_padded)
        self.runner = DeviceRunner(
            self.compute,
            self.device,
            budget_tokens=budget_tokens,
            width=self.dimensions,
            longest=self.max_tokens,
            pads=not flash,
            per_token=self._task == CLASSIFY_TOKENS,
        )
        self.runner.warm_up()
        self._prove_numbers()

    def compute(self, batch: DeviceBatch) -> Tensor:
        """Enqueue the forward pass over a batch that lies on the device; float32, a row per input or per token."""
        hidden = self._device_encoder.encode(batch)
        if self._task != CLASSIFY_TOKENS:
            hidden = pool_mean(hidden, batch) if self._pooling == "mean" else pool_first(hidden, batch)
        return self._head(hidden)

    def scrub(self) -> None:
        """See `worker.models.overlap.Overlapping.scrub`."""
        if self.device.type == "cuda":
            overwrite_free(self.device, self.runner.stream)

    def _prove(self) -> None:
        """Nothing to run yet: the sizes of batches come with `warm_up`."""


class _TokenFlight:
    """A flight whose rows belong to tokens: collects one matrix per input."""

    def __init__(self, flight: Flight, rows: Sequence[Ids]) -> None:
        self._flight = flight
        self._ends = np.cumsum([len(row) for row in rows])

    def collect(self) -> Outputs:
        """See `worker.models.overlap.Flight`."""
        return list(np.split(self._flight.collect(), self._ends[:-1]))
