"""Where a token batch lies in the buffers that travel to a device: token buckets, bounds, and the padded view.

Pure arithmetic on lengths, in numpy, so that it is tested without a device. A batch is padded once, at its tail, to one
of a few sizes: kernels then see few shapes, each of them warm before the first tenant, and a row's matrix products do
not depend on how full the batch was. The tail is filler rows, which attend to themselves and are never read back.

May import: the standard library, numpy. Called by worker.models.cuda_slots and worker.models.cuda_runner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.models.base import Ids

Int32s = NDArray[np.int32]

#: Smallest bucket. Below it a forward pass takes as long as its kernels take to launch, however few tokens it has.
LEAST_BUCKET: Final = 4_096


class Padded(NamedTuple):
    """Rows of like length side by side, for attention that knows no packed batches.

    Class k is a matrix of `counts[k]` rows of `widths[k]` tokens, a power of two; less than half of it is padding.
    """

    widths: list[int]
    counts: list[int]
    #: int32 (Σ counts × widths): the packed token in each cell; padding repeats its row's last token.
    gather: Int32s
    #: int32 (Σ counts): tokens of each row.
    lengths: Int32s
    #: int32 (bucket): the cell of each packed token.
    scatter: Int32s


class Layout(NamedTuple):
    """One token batch, laid out."""

    bucket: int
    #: Rows of the caller; filler rows come after them.
    rows: int
    #: int32 (rows and fillers + 1): where each row begins; the last bound is the bucket.
    bounds: Int32s


def buckets(budget_tokens: int) -> list[int]:
    """Return the sizes that token batches are padded to: 4,096 and its doubles below the budget, and the budget."""
    sizes = []
    size = LEAST_BUCKET
    while size < budget_tokens:
        sizes.append(size)
        size *= 2
    return [*sizes, budget_tokens]


def lay_out(lengths: Sequence[int], sizes: Sequence[int], *, longest: int) -> Layout:
    """Find bucket and bounds of a token batch.

    Args:
        lengths: tokens of each row, at least 1.
        sizes: the buckets, ascending; the last one holds every batch of the caller.
        longest: most tokens of a row of this model; filler rows are no longer.

    Raises:
        ValueError: the batch is over the last bucket, which the packer's budget forbids.
    """
    tokens = sum(lengths)
    bucket = next((size for size in sizes if size >= tokens), 0)
    if not bucket:
        raise ValueError("token batch is over the last bucket")
    whole, rest = divmod(bucket - tokens, longest)
    fillers = [longest] * whole + [rest] * (rest > 0)
    bounds = np.zeros(len(lengths) + len(fillers) + 1, dtype=np.int32)
    np.cumsum([*lengths, *fillers], out=bounds[1:])
    return Layout(bucket, len(lengths), bounds)


def write_ids(rows: Sequence[Ids], layout: Layout, out: Int32s) -> None:
    """Write ids, then the positions in their rows, into int32 (2 × bucket); ids of filler rows are 0."""
    ids, positions = out[: layout.bucket], out[layout.bucket : 2 * layout.bucket]
    end = int(layout.bounds[layout.rows])
    np.concatenate(rows, out=ids[:end])
    ids[end:] = 0
    positions[:] = np.arange(layout.bucket, dtype=np.int32)
    positions -= np.repeat(layout.bounds[:-1], np.diff(layout.bounds))


def pad(layout: Layout) -> Padded:
    """Sort the rows of a batch into classes of like length."""
    starts, lengths = layout.bounds[:-1], np.diff(layout.bounds)
    row_widths = np.array([1 << (int(length) - 1).bit_length() for length in lengths], dtype=np.int32)
    widths, counts, gathers, of_class = [], [], [], []
    scatter = np.empty(layout.bucket, dtype=np.int32)
    cell = 0
    for width in np.unique(row_widths):
        members = np.flatnonzero(row_widths == width)
        steps = np.arange(width, dtype=np.int32)
        tokens = starts[members, None] + np.minimum(steps, lengths[members, None] - 1)
        is_token = steps < lengths[members, None]
        cells = cell + np.arange(tokens.size, dtype=np.int32).reshape(tokens.shape)
        scatter[tokens[is_token]] = cells[is_token]
        widths.append(int(width))
        counts.append(len(members))
        gathers.append(tokens.ravel())
        of_class.append(lengths[members])
        cell += tokens.size
    return Padded(widths, counts, np.concatenate(gathers), np.concatenate(of_class), scatter)
