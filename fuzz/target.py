"""What one fuzz target is. Every module of `fuzz.targets` makes one.

May import: the standard library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

#: libFuzzer's own mutation of bytes, which knows what the instrumented parser compared them with.
MutateBytes = Callable[[bytes], bytes]
#: A mutation that keeps the outer layers of a format intact, so that mutants reach the inner ones.
Mutate = Callable[[bytes, Random, MutateBytes], bytes]

VECTORS: Final = Path(__file__).parents[1] / "tests" / "vectors"


@dataclass(frozen=True, slots=True)
class Target:
    """One parser under test.

    Attributes:
        check: gives the parser one input and returns whether it was accepted. Catches the errors that the parser
            documents and nothing else, and asserts what must hold of an accepted input.
        seeds: makes the first inputs by name: some that are accepted, some that are not.
        mutate: how a mutant is made; None where libFuzzer's own mutation reaches everything.
        max_bytes: length of the longest mutant. Above the seeds, and far below the parser's own cap: what only long
            inputs can break is tested by the caps' own tests.
    """

    check: Callable[[bytes], bool]
    seeds: Callable[[], Mapping[str, bytes]]
    mutate: Mutate | None = None
    max_bytes: int = 2_048
