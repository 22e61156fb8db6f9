"""Float32 matrices as JSON numbers that read back to the same bits, written by whole arrays.

`json.dumps(matrix.tolist())` costs 250 µs for one row of 384 numbers, as much as a GPU needs for dozens of texts, and
writes the 17 digits of a float64. Here a number below 1 takes the fewest decimals of 8 to 12 that read back to
it exactly; the few numbers that none of them represents are written one by one.

May import: the standard library, numpy. Called by worker.models.answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

#: Rows written at once; the intermediate arrays of this many rows of 384 stay in a core's cache.
_CHUNK_ROWS: Final = 64
#: One number takes a cell of 16 bytes: separator, sign, "0.", twelve decimals. A NUL is a byte not used.
_CELL_BYTES: Final = 16
_DECIMALS: Final = (8, 9, 10, 11, 12)
_MOST: Final = _DECIMALS[-1]

_POSITIVE: Final = np.frombuffer(b",\x000.", dtype=np.uint32)[0]
_NEGATIVE: Final = np.frombuffer(b",-0.", dtype=np.uint32)[0]


def _four_digits(*, trimmed: bool) -> NDArray[np.uint32]:
    texts = [b"%04d" % number for number in range(10_000)]
    if trimmed:
        texts = [text.rstrip(b"0").ljust(4, b"\x00") for text in texts]
    return np.frombuffer(b"".join(texts), dtype=np.uint32)


#: Four decimal digits by their value; the trimmed table leaves out trailing zeros.
_DIGITS: Final = _four_digits(trimmed=False)
_TRIMMED: Final = _four_digits(trimmed=True)


def encode_rows(matrix: NDArray[np.float32], *, nulls: AbstractSet[int] = frozenset()) -> bytearray:
    """Write a matrix as an array of arrays of numbers.

    Args:
        matrix: float32 (n, D), finite; fastest where every |number| < 1, as in unit vectors.
        nulls: rows to be written as null.

    Returns:
        JSON text without white space. Each number, read as a float64 and rounded to float32, has the bits it had,
        the sign of zero included.
    """
    text = bytearray(b"[")
    for start in range(0, len(matrix), _CHUNK_ROWS):
        cells = _cells(matrix[start : start + _CHUNK_ROWS])
        for row in range(start, start + len(cells)):
            if row in nulls:
                cells[row - start] = 0
                cells[row - start, -1, :5] = np.frombuffer(b"null,", dtype=np.uint8)
        text += bytearray(cells).translate(None, b"\x00")
    if len(matrix):
        del text[-1]
    text += b"]"
    return text


def _cells(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Lay out rows as uint8 (n, D + 1, 16); the last cell of a row closes it."""
    count, width = rows.shape
    decimals, is_exact = _scaled(rows)
    words = np.zeros((count, width + 1, _CELL_BYTES // 4), dtype=np.uint32)
    upper, low = np.divmod(decimals, 10_000)
    high, middle = np.divmod(upper, 10_000)
    words[:, :width, 0] = np.where(np.signbit(rows), _NEGATIVE, _POSITIVE)
    words[:, :width, 1] = np.where((middle == 0) & (low == 0), _TRIMMED[high], _DIGITS[high])
    words[:, :width, 2] = np.where(low == 0, _TRIMMED[middle], _DIGITS[middle])
    words[:, :width, 3] = _TRIMMED[low]
    cells = words.view(np.uint8).reshape(count, width + 1, _CELL_BYTES)
    for row, column in np.argwhere(~is_exact):
        text = b"," + _shortest(rows[row, column])
        cells[row, column] = np.frombuffer(text.ljust(_CELL_BYTES, b"\x00"), dtype=np.uint8)
    cells[:, 0, 0] = ord("[")
    cells[:, -1, :2] = np.frombuffer(b"],", dtype=np.uint8)
    return cells


def _scaled(rows: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return |number| × 10^12 rounded to the fewest decimals that read back, and which of them do.

    A decimal of at most 12 digits divided by its power of ten is rounded once in float64, exactly as a JSON
    reader rounds it, so comparing after the cast to float32 is the reader's own test.
    """
    wanted = np.abs(rows).ravel()
    exact = wanted.astype(np.float64)
    scaled = np.ones(exact.shape, dtype=np.float64)
    open_ = np.flatnonzero((wanted < 1) & (wanted > 0))
    for decimals in _DECIMALS:
        power = 10.0**decimals
        digits = np.rint(exact[open_] * power)
        # A number that rounds up to 1 has no cell, and one that rounds to 0 has no digits.
        reads_back = ((digits / power).astype(np.float32) == wanted[open_]) & (digits < power) & (digits > 0)
        scaled[open_[reads_back]] = digits[reads_back] * 10.0 ** (_MOST - decimals)
        open_ = open_[~reads_back]
    is_exact = (wanted < 1) & (wanted > 0)
    is_exact[open_] = False
    return scaled.astype(np.int64).reshape(rows.shape), is_exact.reshape(rows.shape)


def _shortest(number: np.float32) -> bytes:
    """Write one number; at most 15 bytes: sign, nine digits, point, exponent of two digits."""
    return np.format_float_scientific(number, trim="-", exp_digits=1).encode()
