"""A BERT-family encoder over packed token batches: no padding, no mask, the same bits whoever the batch mates are.

A token batch is cut into pieces, one for each processor at a time. Rows of a piece lie one after another in a single
(T, width) matrix, so linear layers, layer norms and activations never see padding. Attention runs once per group of
equally long rows, which is exact without a mask. The large matrices of a layer are made once per thread and zeroed
after every piece: they hold what the texts say, and fresh ones would cost a page fault for every 4 KiB.

Called by worker.models.embedder. May import: the standard library, numpy, torch, worker.models.
"""

from __future__ import annotations

import threading
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from worker.models.heads import MIN_TOKENS, unit_vectors
from worker.models.lanes import PIECE_TOKENS, Lanes, cut

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
    """A piece laid out: shortest rows first, a filler row last where it is under MIN_TOKENS."""

    ids: np.ndarray[tuple[int], np.dtype[np.int32]]
    positions: np.ndarray[tuple[int], np.dtype[np.int32]]
    groups: list[Group]
    #: order[k] is the caller's index of packed row k.
    order: list[int]


def pack(rows: Sequence[Ids]) -> Packed:
    """Lay out the rows of one piece. Rows of length zero do not occur: every row has its special tokens."""
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


class Matrices:
    """What one thread computes in, large enough for any piece.

    Args:
        tokens: rows of each matrix.
        config: decides their widths.
        like: a weight, for dtype and device.
    """

    def __init__(self, tokens: int, config: BertConfig, like: Tensor) -> None:
        width = config.hidden_size
        # Zeros, not empty: the filler's context must be a number, or its rows could slow the kernels with NaNs.
        self.qkv, self.context, self.sum, self.inner = (
            like.new_zeros(tokens, columns) for columns in (3 * width, width, width, config.intermediate_size)
        )

    def wipe(self, tokens: int) -> None:
        """Zero the rows that a piece used."""
        for matrix in (self.qkv, self.context, self.sum, self.inner):
            matrix[:tokens].zero_()


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
        self._lanes = Lanes()
        self._of_thread = threading.local()

    def embed(self, rows: Sequence[Ids]) -> Embeddings:
        """Run one token batch to one row per input.

        Args:
            rows: ids of each input, 1 to the model's limit of them.

        Returns:
            float32 (len(rows), width of the head), in the order of the rows.
        """
        pieces = self._cut(rows)
        found = self._lanes.run(self._embed, [[rows[index] for index in piece] for piece in pieces])
        embeddings = np.empty((len(rows), found[0].shape[1]), dtype=np.float32)
        for piece, of_piece in zip(pieces, found, strict=True):
            embeddings[piece] = of_piece
            of_piece.fill(0)
        return embeddings

    def embed_tokens(self, rows: Sequence[Ids]) -> list[Embeddings]:
        """Run one token batch to one row per token.

        Returns:
            float32 (T, width of the head) for each input, in the order of the rows; views of one buffer per piece.
        """
        pieces = self._cut(rows)
        found = self._lanes.run(self._embed_tokens, [[rows[index] for index in piece] for piece in pieces])
        placed = dict(zip(chain(*pieces), chain(*found), strict=True))
        return [placed[index] for index in range(len(rows))]

    def _cut(self, rows: Sequence[Ids]) -> list[list[int]]:
        return cut([len(row) for row in rows], lanes=self._lanes.count)

    @torch.inference_mode()
    def _embed(self, rows: Sequence[Ids]) -> Embeddings:
        packed = pack(rows)
        found = self._head(self._pool(self._encode(packed), packed.groups))
        ordered = torch.empty_like(found)
        ordered[torch.tensor(packed.order, device=found.device)] = found
        return ordered.cpu().numpy()

    @torch.inference_mode()
    def _embed_tokens(self, rows: Sequence[Ids]) -> list[Embeddings]:
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
        hidden = self._norm(weights.words[ids].add_(weights.positions[positions]), weights.embedding_norm)
        matrices = self._matrices()
        try:
            for layer in weights.layers:
                hidden = self._layer(hidden, layer, packed.groups, matrices)
        finally:
            matrices.wipe(len(ids))
        return hidden

    def _matrices(self) -> Matrices:
        if not hasattr(self._of_thread, "matrices"):
            tokens = max(PIECE_TOKENS, self._config.longest)
            self._of_thread.matrices = Matrices(tokens, self._config, self._weights.words)
        found: Matrices = self._of_thread.matrices
        return found

    def _layer(self, hidden: Tensor, layer: Layer, groups: list[Group], matrices: Matrices) -> Tensor:
        qkv = _linear(hidden, layer.qkv, matrices.qkv)
        context = self._attend(qkv, groups, matrices.context[: len(hidden)])
        attended = _linear(context, layer.attention_output, matrices.sum).add_(hidden)
        hidden = self._norm(attended, layer.attention_norm)
        inner = torch.ops.aten.gelu_(_linear(hidden, layer.intermediate, matrices.inner))
        return self._norm(_linear(inner, layer.output, matrices.sum).add_(hidden), layer.output_norm)

    def _attend(self, qkv: Tensor, groups: list[Group], context: Tensor) -> Tensor:
        heads = self._config.num_attention_heads
        for group in groups:
            shape = (group.rows, group.length, 3, heads, -1)
            query, key, value = qkv[group.span].view(shape).permute(2, 0, 3, 1, 4)
            attended = functional.scaled_dot_product_attention(query, key, value)
            context[group.span] = attended.transpose(1, 2).reshape(group.rows * group.length, -1)
        return context

    def _norm(self, hidden: Tensor, norm: Affine) -> Tensor:
        return functional.layer_norm(hidden, norm.weight.shape, norm.weight, norm.bias, self._config.layer_norm_eps)


def _linear(rows: Tensor, affine: Affine, into: Tensor) -> Tensor:
    """Compute a linear layer into the first rows of a matrix; the same bits as torch.nn.functional.linear."""
    return torch.addmm(affine.bias, rows, affine.weight.t(), out=into[: len(rows)])
