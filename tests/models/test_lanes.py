"""Pieces of a token batch, and the threads that compute them."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.models.base import Model, Tokens
from worker.models.bert import BertEncoder
from worker.models.lanes import LEAST_TOKENS, PIECE_TOKENS, Lanes, cut

LENGTHS = st.lists(st.integers(1, 3 * PIECE_TOKENS // 2), min_size=1, max_size=60)
LANES = st.integers(1, 64)


@given(lengths=LENGTHS, lanes=LANES)
def test_every_row_is_in_one_piece(lengths: list[int], lanes: int) -> None:
    """No row is lost and none is run twice."""
    pieces = cut(lengths, lanes=lanes)
    assert sorted(index for piece in pieces for index in piece) == list(range(len(lengths)))
    assert all(pieces)


@given(lengths=LENGTHS, lanes=LANES)
def test_a_piece_fits_the_matrices_of_a_thread(lengths: list[int], lanes: int) -> None:
    """A piece is over its most tokens only where one row alone is."""
    for piece in cut(lengths, lanes=lanes):
        assert len(piece) == 1 or sum(lengths[index] for index in piece) <= PIECE_TOKENS


@given(lengths=LENGTHS, lanes=LANES)
def test_the_longest_rows_go_first(lengths: list[int], lanes: int) -> None:
    """Whoever is left at the end of a batch is left with little."""
    ordered = [lengths[index] for piece in cut(lengths, lanes=lanes) for index in piece]
    assert ordered == sorted(lengths, reverse=True)


def test_a_small_batch_is_shared_out_and_a_tiny_one_is_not() -> None:
    """Two processors split what is worth splitting."""
    assert len(cut([LEAST_TOKENS] * 4, lanes=2)) == 2
    assert len(cut([LEAST_TOKENS // 4] * 4, lanes=2)) == 1


def test_lanes_compute_alone_and_leave_their_makers_threads_as_they_are() -> None:
    """A lane's kernels run on one thread, which is a setting of that thread and of no other."""
    before = torch.get_num_threads()
    lanes = Lanes()
    assert lanes.count == before
    together = threading.Barrier(lanes.count)

    def count(_piece: int) -> tuple[str, int]:
        together.wait(timeout=30)
        return threading.current_thread().name, torch.get_num_threads()

    found = lanes.run(count, range(lanes.count))
    assert [threads for _, threads in found] == [1] * lanes.count
    assert len({name for name, _ in found}) == lanes.count
    assert torch.get_num_threads() == before


def test_an_error_of_one_piece_is_the_callers() -> None:
    """Nothing that a lane raises is lost."""
    with pytest.raises(ZeroDivisionError):
        Lanes().run(lambda piece: 1 // piece, [1, 0, 1])


def test_a_thread_keeps_nothing_of_what_it_computed(tiny: Model) -> None:
    """Activations say what the texts say, so the matrices that outlive a batch are zeroed with it."""
    outcomes = tiny.tokenise(["a text that nobody else should see", "another"])
    rows = [outcome.ids for outcome in outcomes if isinstance(outcome, Tokens)]
    encoder: BertEncoder = tiny._encoder  # type: ignore[attr-defined]
    outputs = encoder.embed(rows)
    assert np.abs(outputs).max() > 0
    (matrices,) = encoder._lanes.run(lambda _: encoder._matrices(), [0])
    for matrix in (matrices.qkv, matrices.context, matrices.sum, matrices.inner):
        assert not matrix.count_nonzero()
