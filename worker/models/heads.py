"""Heads: what becomes of an encoder's hidden states, pooled or of every token.

Called by worker.models.bert; works on any device. May import: the standard library, torch, worker.models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.models.bert_weights import Affine

#: Below this many rows of a matrix the CPU's kernels take another path whose sums differ in the last bit.
MIN_TOKENS: Final = 16
#: From hidden states (n, width) to float32 (n, numbers).
Head = Callable[[Tensor], Tensor]


def unit_vectors(states: Tensor) -> Tensor:
    """Scale each row to length one."""
    return functional.normalize(states.float(), dim=1)


class Classifier:
    """A head of linear layers with tanh between them: BERT's pooler and classifier, RoBERTa's dense and out_proj.

    Args:
        layers: in order; the last has one row per label.
        multi_label: whether each label is judged by itself; otherwise they share a probability of one.
    """

    def __init__(self, layers: Sequence[Affine], *, multi_label: bool) -> None:
        *self._inner, self._last = layers
        self._multi_label = multi_label

    def __call__(self, states: Tensor) -> Tensor:
        """Return the scores of each row: float32 (n, labels)."""
        rows = len(states)
        if rows < MIN_TOKENS:
            # The same kernels for few rows as for many, as in the encoder: the bits of a row are its own.
            states = torch.cat([states, states.new_zeros(MIN_TOKENS - rows, states.shape[1])])
        for layer in self._inner:
            states = torch.tanh(functional.linear(states, *layer))
        logits = functional.linear(states, *self._last).float()[:rows]
        if not self._multi_label:
            return torch.softmax(logits, dim=1)
        # The logistic function, as a softmax over (x, 0): a kernel that works row by row. torch.sigmoid has other bits
        # for the last elements of a tensor than for the rest.
        return torch.softmax(torch.stack([logits, torch.zeros_like(logits)], dim=2), dim=2)[:, :, 0]
