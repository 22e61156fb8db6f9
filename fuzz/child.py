"""The process that fuzzes one target: instruments its parser, hands it to libFuzzer, and counts.

Started by `fuzz.runner` as `python -m fuzz.child MODULE TALLY LIBFUZZER-ARGUMENTS`. May import: the standard library,
atheris, fuzz; parsers only behind `instrument_imports`.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from random import Random
from typing import Final

import atheris

from fuzz import registry
from fuzz.tally import Counter
from fuzz.target import Target

PARSERS: Final = ["mrgc", "enclave", "worker", "infra"]
#: Address space beyond what the process has when it starts. A parser that allocates what an input declares dies of it.
HEADROOM_BYTES: Final = 512 << 20


def main() -> None:
    """Fuzz until a limit among libFuzzer's arguments, or the first failure."""
    module, tally, *arguments = sys.argv[1:]
    with atheris.instrument_imports(include=PARSERS):
        target = registry.load_module(module)
    counter = Counter(Path(tally))

    def test_one_input(data: bytes) -> None:
        counter.count(accepted=target.check(data))

    options = {} if target.mutate is None else {"custom_mutator": _mutator(target)}
    atheris.Setup([sys.argv[0], f"-max_len={target.max_bytes}", *arguments], test_one_input, **options)
    _limit_memory()
    atheris.Fuzz()


def _mutator(target: Target) -> atheris.Callable[[bytes, int, int], bytes]:
    def mutate(data: bytes, max_bytes: int, seed: int) -> bytes:
        def mutate_bytes(part: bytes) -> bytes:
            return bytes(atheris.Mutate(part, max(1, min(max_bytes, 2 * len(part) + 8))))

        assert target.mutate is not None
        return target.mutate(data, Random(seed), mutate_bytes)[:max_bytes]  # noqa: S311 - repeatable by its seed

    return mutate


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + HEADROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
