"""Time and memory of long inputs: every parser is linear in both, whatever it is given over and over."""

from __future__ import annotations

import time
import tracemalloc
from random import Random
from typing import Final

import pytest

from fuzz import registry
from mrgc.errors import FormatError
from mrgc.wire import strict_json

LONG_BYTES: Final = 64 << 10
#: Long inputs of each target.
INPUTS: Final = 60
#: Of processor time for one of them. The slowest takes a tenth; work for each pair of bytes takes ten times as long.
MOST_S: Final = 3.0
#: What is repeated, beside pieces of the seeds.
PIECES: Final = (
    b'"', b'\\"', b"\\", b"[", b"]", b"{", b'{"":', b'"":', b'"",', b",", b"*", b"?", b" ", b"1", b"1e", b"/", b"=",
    b"\x80", b"\x81", b"\x9f", b"\xa0", b"\xbf", b"\xff", b"\x5f", b"\x40", b"\x30\x80", b"\xc2\xa0", b"\x00",
)  # fmt: skip


@pytest.mark.parametrize("name", registry.NAMES)
def test_repetition_takes_linear_time(name: str) -> None:
    """A piece of an input, repeated to 64 KiB in its place, is accepted or refused soon."""
    target, random = registry.load(name), Random(name)
    seeds = list(target.seeds().values())
    for _ in range(INPUTS):
        data = random.choice(seeds)
        at = random.randint(0, len(data))
        piece = random.choice((data[at : at + random.randint(1, 8)] or b"\x00", random.choice(PIECES)))
        start_s = time.process_time()
        target.check(data[:at] + piece * (LONG_BYTES // len(piece)) + data[at:])
        assert time.process_time() - start_s < MOST_S, (data[:at], piece)


def test_a_json_text_without_end_takes_linear_time() -> None:
    """Escaped quotes after a quote that nothing closes are no new beginnings."""
    start_s = time.process_time()
    with pytest.raises(FormatError):
        strict_json.parse(b'"' + b'\\"' * LONG_BYTES, max_values=1)
    assert time.process_time() - start_s < MOST_S


@pytest.mark.parametrize(
    ("piece", "times"),
    [
        pytest.param(b"\\n", 16, id="escapes"),
        pytest.param(b'","', 8, id="texts"),
        pytest.param(b'":"', 8, id="names"),
        pytest.param(b'"]"', 8, id="brackets"),
    ],
)
def test_counting_json_values_keeps_nothing_for_each(piece: bytes, times: int) -> None:
    """Memory beside a text of 1 MiB is a few times its length, be it one string of escapes or a million of strings."""
    data = b'["' + piece * ((1 << 20) // len(piece)) + b'"]'
    tracemalloc.start()
    try:
        strict_json.parse(data, max_values=4)
    except FormatError:
        pass
    finally:
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes < times * len(data)
