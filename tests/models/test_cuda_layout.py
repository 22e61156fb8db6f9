"""Layout of token batches for a device: buckets, bounds, positions, padded classes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.models import cuda_layout
from worker.models.cuda_layout import LEAST_BUCKET, Layout

LONGEST = 40
SIZES = [16, 64, 200]
#: Lengths of the rows of a batch that fits the last bucket.
LENGTHS = st.lists(st.integers(1, LONGEST), min_size=1, max_size=60).filter(lambda lengths: sum(lengths) <= SIZES[-1])


def laid_out(lengths: list[int]) -> Layout:
    """Lay out rows of these lengths."""
    return cuda_layout.lay_out(lengths, SIZES, longest=LONGEST)


@given(budget=st.integers(16, 1 << 17))
def test_buckets_double_up_to_the_budget(budget: int) -> None:
    """Every batch within the budget finds a bucket less than twice its size, or the smallest."""
    sizes = cuda_layout.buckets(budget)
    assert sizes[-1] == budget
    assert sizes == sorted(set(sizes))
    assert all(following <= 2 * size for size, following in itertools.pairwise(sizes))
    assert sizes[0] == min(budget, LEAST_BUCKET)


@given(lengths=LENGTHS)
def test_a_batch_is_padded_at_its_tail_to_the_next_bucket(lengths: list[int]) -> None:
    """Rows lie one after another in order of arrival; filler rows fill the smallest bucket that holds them."""
    layout = laid_out(lengths)
    tokens = sum(lengths)
    assert layout.bucket == min(size for size in SIZES if size >= tokens)
    assert np.diff(layout.bounds)[: layout.rows].tolist() == lengths
    assert layout.bounds[0] == 0
    assert layout.bounds[layout.rows] == tokens
    assert layout.bounds[-1] == layout.bucket
    assert np.diff(layout.bounds).min() >= 1
    assert np.diff(layout.bounds).max() <= LONGEST


@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_ids_are_followed_by_zeros_and_positions_restart_with_each_row(lengths: list[int], seed: int) -> None:
    """What the embedding tables are asked for is each row's own, filler rows included."""
    rows = [np.random.default_rng(seed).integers(1, 1_000, length, dtype=np.int32) for length in lengths]
    layout = laid_out(lengths)
    out = np.full(2 * layout.bucket + 3, -1, dtype=np.int32)
    cuda_layout.write_ids(rows, layout, out)
    ids, positions, rest = np.split(out, [layout.bucket, 2 * layout.bucket])
    assert ids.tolist() == np.concatenate(rows).tolist() + [0] * (layout.bucket - sum(lengths))
    assert positions.tolist() == [step for length in np.diff(layout.bounds) for step in range(length)]
    assert rest.tolist() == [-1] * 3


@given(lengths=LENGTHS)
def test_padded_classes_hold_each_token_once(lengths: list[int]) -> None:
    """From packed tokens to cells and back is the identity; cells beyond a row's length repeat its own tokens."""
    layout = laid_out(lengths)
    padded = cuda_layout.pad(layout)
    assert padded.gather[padded.scatter].tolist() == list(range(layout.bucket))
    assert len(padded.gather) == sum(width * count for width, count in zip(padded.widths, padded.counts, strict=True))
    assert len(padded.gather) < 2 * layout.bucket
    row_of = np.repeat(np.arange(len(layout.bounds) - 1), np.diff(layout.bounds))
    cell = row = 0
    for width, count in zip(padded.widths, padded.counts, strict=True):
        for length in padded.lengths[row : row + count]:
            tokens = padded.gather[cell : cell + width]
            assert width // 2 < length <= width
            assert np.diff(tokens[:length]).tolist() == [1] * (length - 1)
            assert len(set(row_of[tokens].tolist())) == 1
            cell += width
        row += count


def test_a_batch_over_the_last_bucket_is_refused() -> None:
    """Nothing is cut off silently."""
    with pytest.raises(ValueError, match="over the last bucket"):
        laid_out([LONGEST] * 6)
