"""A BERT-family encoder over packed token batches: no padding, no mask, the same bits whoever the batch mates are.

Rows of one token batch lie one after another in a single (T, width) matrix, so linear layers, layer norms and
activations never see padding. Attention runs once per group of equally long rows, which is exact without a mask.

Called by worker.models.embedder. May import: the standard library, numpy, torch, worker.models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from worker.models.heads import MIN_TOKENS, unit_vectors

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from worker.models.base import Embeddings, Ids
    from worker.models.bert_weights import Affine, BertConfig, BertWeights, Layer
    from worker.models.heads import Head


class Group(NamedTuple):
    """Consecutive rows of equal length in a packed batch."""

    start: int
    rows: int
    length: int

    @property
    def span(self) -> slice:
        """The group's tokens in the packed batch."""
        return slice(self.start, self.start + self.rows * self.length)


class Packed(NamedTuple):
    """A token batch laid out: shortest rows first, a filler row last where the batch is under MIN_TOKENS."""

    ids: np.ndarray[tuple[int], np.dtype[np.int32]]
    positions: np.ndarray[tuple[int], np.dtype[np.int32]]
    groups: list[Group]
    #: order[k] is the caller's index of packed row k.
    order: list[int]


def pack(rows: Sequence[Ids]) -> Packed:
    """Lay out rows for one forward pass. Rows of length zero do not occur: every row has its special tokens."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    ordered = [rows[index] for index in order]
    groups = _groups(len(row) for row in ordered)
    missing = MIN_TOKENS - sum(map(len, ordered))
    if missing > 0:
        # The filler attends to itself alone; its output belongs to no group and is dropped.
        ordered.append(np.zeros(missing, dtype=np.int32))
    positions = np.concatenate([np.arange(len(row), dtype=np.int32) for row in ordered])
    return Packed(np.concatenate(ordered), positions, groups, order)


def _groups(lengths: Iterable[int]) -> list[Group]:
    groups: list[Group] = []
    start = 0
    for length in lengths:
        if groups and groups[-1].length == length:
            groups[-1] = groups[-1]._replace(rows=groups[-1].rows + 1)
        else:
            groups.append(Group(start, 1, length))
        start += length
    return groups


def _mean(hidden: Tensor, groups: Sequence[Group]) -> Tensor:
    """Average each row's tokens: float32 (rows, width), in packed order."""
    return torch.cat([hidden[group.span].view(group.rows, group.length, -1).float().mean(dim=1) for group in groups])


def _first(hidden: Tensor, groups: Sequence[Group]) -> Tensor:
    """Take each row's first token: (rows, width), in packed order."""
    return torch.cat([hidden[group.start : group.span.stop : group.length] for group in groups])


class BertEncoder:
    """Forward pass of a BERT-family encoder with its pooling and its head.

    Args:
        config: shapes and epsilon.
        weights: on one device, in one dtype; mean pooling is float32 whatever that is.
        pooling: how an input's tokens become one row: "mean", or "cls", the first one's hidden state.
        head: what is made of hidden states, pooled or of every token.
    """

    def __init__(
        self, config: BertConfig, weights: BertWeights, *, pooling: str = "mean", head: Head = unit_vectors
    ) -> None:
        self._config = config
        self._weights = weights
        self._pool = _mean if pooling == "mean" else _first
        self._head = head

    @torch.inference_mode()
    def embed(self, rows: Sequence[Ids]) -> Embeddings:
        """Run one token batch to one row per input.

        Args:
            rows: ids of each input, 1 to the model's limit of them.

        Returns:
            float32 (len(rows), width of the head), in the order of the rows.
        """
        packed = pack(rows)
        found = self._head(self._pool(self._encode(packed), packed.groups))
        ordered = torch.empty_like(found)
        ordered[torch.tensor(packed.order, device=found.device)] = found
        return ordered.cpu().numpy()

    @torch.inference_mode()
    def embed_tokens(self, rows: Sequence[Ids]) -> list[Embeddings]:
        """Run one token batch to one row per token.

        Returns:
            float32 (T, width of the head) for each input, in the order of the rows; views of one buffer.
        """
        packed = pack(rows)
        found = self._head(self._encode(packed)).cpu().numpy()
        ordered = [found] * len(rows)
        starts = (start for group in packed.groups for start in range(group.start, group.span.stop, group.length))
        for index, start in zip(packed.order, starts, strict=True):
            ordered[index] = found[start : start + len(rows[index])]
        return ordered

    def _encode(self, packed: Packed) -> Tensor:
        weights = self._weights
        device = weights.words.device
        ids = torch.from_numpy(packed.ids).to(device)
        positions = torch.from_numpy(packed.positions).to(device)
        hidden = self._norm(weights.words[ids] + weights.positions[positions], weights.embedding_norm)
        for layer in weights.layers:
            hidden = self._layer(hidden, layer, packed.groups)
        return hidden

    def _layer(self, hidden: Tensor, layer: Layer, groups: list[Group]) -> Tensor:
        context = self._attend(functional.linear(hidden, *layer.qkv), groups)
        hidden = self._norm(functional.linear(context, *layer.attention_output) + hidden, layer.attention_norm)
        inner = functional.gelu(functional.linear(hidden, *layer.intermediate))
        return self._norm(functional.linear(inner, *layer.output) + hidden, layer.output_norm)

    def _attend(self, qkv: Tensor, groups: list[Group]) -> Tensor:
        heads = self._config.num_attention_heads
        # Zeros, not empty: the filler's context must be a number, or its rows could slow the kernels with NaNs.
        context = torch.zeros(len(qkv), self._config.hidden_size, dtype=qkv.dtype, device=qkv.device)
        for group in groups:
            shape = (group.rows, group.length, 3, heads, -1)
            query, key, value = qkv[group.span].view(shape).permute(2, 0, 3, 1, 4)
            attended = functional.scaled_dot_product_attention(query, key, value)
            context[group.span] = attended.transpose(1, 2).reshape(group.rows * group.length, -1)
        return context

    def _norm(self, hidden: Tensor, norm: Affine) -> Tensor:
        return functional.layer_norm(hidden, norm.weight.shape, norm.weight, norm.bias, self._config.layer_norm_eps)
