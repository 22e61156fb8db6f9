"""`python -m fuzz`: fuzzes all targets, or one (docs/fuzzing.md).

Exit status: 0 no finding, 1 a finding or growing memory, 2 usage, or atheris is not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from fuzz import registry
from fuzz.runner import Limits, Outcome, run

_NOT_INSTALLED: Final = (
    "fuzz: atheris is not installed. It has wheels for x86-64 Linux only; `make fuzz` installs it there.\n"
    "Without it, `python -m pytest tests/fuzz` replays the corpus and every kept finding."
)
_HEADING: Final = (
    f"{'target':<22} {'inputs':>10} {'per s':>7} {'accepted':>10} {'MiB at start':>13} {'at end':>7}  result"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the arguments say and return the exit status."""
    options = _parser().parse_args(argv)
    if find_spec("atheris") is None:
        print(_NOT_INSTALLED, file=sys.stderr)
        return 2
    limits = Limits(options.seconds, options.runs)

    def fuzz(name: str) -> Outcome:
        outcome = run(name, limits, corpus=options.corpus.resolve(), crashes=options.crashes.resolve())
        if not options.json:
            print(_row(outcome), flush=True)
        return outcome

    if not options.json:
        print(_HEADING, flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = list(pool.map(fuzz, options.target or registry.NAMES))
    for outcome in outcomes:
        if outcome.failure:
            print(
                f"\n{outcome.target}: {outcome.failure}\n{outcome.log}", *outcome.artifacts, sep="\n", file=sys.stderr
            )
    if options.json:
        print(json.dumps([outcome.to_json() for outcome in outcomes]))
    return int(any(outcome.failure for outcome in outcomes))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Fuzz the parsers of mrgc.")
    parser.add_argument("--seconds", type=int, default=0, help="end each target after this long (default: no limit)")
    parser.add_argument("--runs", type=int, default=0, help="end each target after so many inputs (default: no limit)")
    parser.add_argument("--target", action="append", choices=registry.NAMES, metavar="NAME", help="only this target")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets at a time (default: one a core)")
    parser.add_argument("--corpus", type=Path, default=registry.CORPUS, help="where interesting inputs are kept")
    parser.add_argument("--crashes", type=Path, default=registry.CRASHES, help="where findings are kept")
    parser.add_argument("--json", action="store_true", help="print one list of objects instead of a table")
    return parser


def _row(outcome: Outcome) -> str:
    return (
        f"{outcome.target:<22} {outcome.inputs:>10,} {outcome.inputs_per_s:>7,} {outcome.accepted:>10,} "
        f"{outcome.warm_bytes >> 20:>13} {outcome.last_bytes >> 20:>7}  {outcome.failure or 'ok'}"
    )


if __name__ == "__main__":
    sys.exit(main())
