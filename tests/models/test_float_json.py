"""Numbers written by whole arrays read back to the same bits."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from worker.models.float_json import encode_rows

ANY_FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)


def read_back(text: bytes | bytearray) -> NDArray[np.float32]:
    """Read JSON the way a tenant's library does: float64 first, then float32."""
    return np.array(json.loads(text), dtype=np.float64).astype(np.float32)


@given(matrix=hnp.arrays(np.float32, SHAPES, elements=ANY_FLOAT32))
def test_any_finite_matrix_reads_back_to_the_same_bits(matrix: NDArray[np.float32]) -> None:
    """Subnormals, huge numbers, ones and both zeros survive the fast path and the slow one."""
    assert read_back(encode_rows(matrix)).tobytes() == matrix.tobytes()


@given(matrix=hnp.arrays(np.float32, SHAPES, elements=st.floats(-1, 1, width=32)))
def test_numbers_of_unit_vectors_read_back_to_the_same_bits(matrix: NDArray[np.float32]) -> None:
    """The range that embeddings have gets its own, denser examples."""
    assert read_back(encode_rows(matrix)).tobytes() == matrix.tobytes()


def test_every_binade_reads_back_at_its_edges() -> None:
    """The numbers beside a power of two are where a digit too few would show."""
    powers = np.float32(2.0) ** np.arange(-140, 127, dtype=np.float32)
    edges = np.concatenate([powers, np.nextafter(powers, np.float32(0)), np.nextafter(powers, np.float32(3e38))])
    matrix = np.stack([edges, -edges])
    assert read_back(encode_rows(matrix)).tobytes() == matrix.tobytes()


def test_a_number_is_as_short_as_it_can_be() -> None:
    """Trailing zeros are left out, also where whole groups of digits are zeros."""
    matrix = np.array([[0.5, -0.25, 0.0001220703125, 0.1, 1.0]], dtype=np.float32)
    assert bytes(encode_rows(matrix)) == b"[[0.5,-0.25,0.00012207031,0.1,1e+0]]"


def test_embeddings_take_about_twelve_bytes_a_number() -> None:
    """The cap on bodies was computed with it: about 7,100 rows of 384 numbers fit (docs/spec.md §3)."""
    matrix = np.random.default_rng(3).standard_normal((200, 384), dtype=np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    assert len(encode_rows(matrix)) / matrix.size < 12.3


@given(count=st.integers(1, 140), nulls=st.sets(st.integers(0, 139)))
def test_failed_rows_are_null_at_their_own_place(count: int, nulls: set[int]) -> None:
    """Rows keep their index, over the borders of the chunks that are written at once."""
    matrix = (np.arange(count).reshape(count, 1) / 256).astype(np.float32)
    rows = json.loads(encode_rows(matrix, nulls=nulls))
    assert rows == [None if row in nulls else [row / 256] for row in range(count)]
