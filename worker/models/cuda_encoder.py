"""The BERT encoder's arithmetic for a device that works through queues: nothing here makes host or device wait.

The same layers as worker.models.bert, over batches padded to a bucket at their tail. Kept apart because the CPU's
encoder promises the same bits for any batch mates, which rests on its own layout and on running attention per group of
equal lengths; a device is fast for other reasons.

May import: the standard library, torch, worker.models. Called by worker.models.cuda_runner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from worker.models.bert_weights import Affine, BertConfig, BertWeights, Layer
    from worker.models.cuda_attention import Attention, DeviceBatch


class DeviceEncoder:
    """Forward pass of a BERT encoder over a laid-out batch.

    Args:
        config: shapes and epsilon.
        weights: on the device, in its number type.
        attend: `attend_varlen` or `attend_padded`.
    """

    def __init__(self, config: BertConfig, weights: BertWeights, attend: Attention) -> None:
        self._config = config
        self._weights = weights
        self._attend = attend

    def encode(self, batch: DeviceBatch) -> Tensor:
        """Return the hidden states of all tokens: (bucket, width) in the weights' number type."""
        weights = self._weights
        embedded = functional.embedding(batch.ids, weights.words) + functional.embedding(
            batch.positions, weights.positions
        )
        hidden = self._norm(embedded, weights.embedding_norm)
        for layer in weights.layers:
            hidden = self._layer(hidden, layer, batch)
        return hidden

    def _layer(self, hidden: Tensor, layer: Layer, batch: DeviceBatch) -> Tensor:
        qkv = functional.linear(hidden, *layer.qkv).view(len(hidden), 3, self._config.num_attention_heads, -1)
        context = self._attend(qkv, batch)
        hidden = self._norm(functional.linear(context, *layer.attention_output) + hidden, layer.attention_norm)
        inner = functional.gelu(functional.linear(hidden, *layer.intermediate))
        return self._norm(functional.linear(inner, *layer.output) + hidden, layer.output_norm)

    def _norm(self, hidden: Tensor, norm: Affine) -> Tensor:
        return functional.layer_norm(hidden, norm.weight.shape, norm.weight, norm.bias, self._config.layer_norm_eps)


def pool_mean(hidden: Tensor, batch: DeviceBatch) -> Tensor:
    """Return the rows' means, float32 (rows and fillers, width).

    Each mean is summed in the order of its row's tokens, by one thread per column: the same sum whatever lies beside
    the row. An index_add would add in the order in which threads come.
    """
    every_token = torch.arange(len(hidden), dtype=torch.int32, device=hidden.device)
    return functional.embedding_bag(every_token, hidden.float(), batch.bounds, mode="mean", include_last_offset=True)


def pool_first(hidden: Tensor, batch: DeviceBatch) -> Tensor:
    """Return the hidden state of each row's first token, (rows and fillers, width)."""
    return hidden.index_select(0, batch.bounds[:-1])
