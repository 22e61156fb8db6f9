"""What the fuzzing process counts, in memory that its parent reads after it: libFuzzer ends the process by itself.

Called by `fuzz.child` and `fuzz.runner`. May import: the standard library.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import Final, NamedTuple

#: Inputs before memory is measured the first time: by then the parser's caches and the corpus are in memory.
WARM_UP_INPUTS: Final = 20_000
#: Inputs between two measurements.
_INTERVAL_INPUTS: Final = 1_000
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class Tally(NamedTuple):
    """Figures of one run."""

    inputs: int
    accepted: int
    #: Resident memory after the warm-up, and at the last measurement; 0 if the run ended before it.
    warm_bytes: int
    last_bytes: int


_LAYOUT: Final = struct.Struct("=4Q")


class Counter:
    """The writing side.

    Args:
        path: a file that `create` made.
    """

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _LAYOUT.size)
        self._inputs = self._accepted = self._warm_bytes = self._last_bytes = 0

    def count(self, *, accepted: bool) -> None:
        """Count one input."""
        self._inputs += 1
        self._accepted += accepted
        if self._inputs >= WARM_UP_INPUTS and self._inputs % _INTERVAL_INPUTS == 0:
            self._last_bytes = resident_bytes()
            self._warm_bytes = self._warm_bytes or self._last_bytes
        _LAYOUT.pack_into(self._memory, 0, self._inputs, self._accepted, self._warm_bytes, self._last_bytes)


def create(path: Path) -> None:
    """Make an empty tally."""
    path.write_bytes(bytes(_LAYOUT.size))


def read(path: Path) -> Tally:
    """Return what a process counted until it ended, however it ended."""
    return Tally(*_LAYOUT.unpack(path.read_bytes()))


def resident_bytes() -> int:
    """Return the resident memory of this process: proc(5), /proc/PID/statm."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
