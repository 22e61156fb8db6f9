"""All benchmarks, one after another, and a table of their figures: `python -m bench`.

Each runs as a command of its own, with --json, and its own table appears as it runs. --out keeps their last lines in
a folder, one file each. May import: the standard library.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

BENCHMARKS: Final = ("inference", "enclave", "queues")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks; returns 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="run all benchmarks and print a table")
    parser.add_argument("--only", choices=BENCHMARKS, action="append", help="may be given more than once")
    parser.add_argument("--out", type=Path, help="folder for <benchmark>.json")
    options = parser.parse_args(argv)
    found = {name: run(name) for name in options.only or BENCHMARKS}
    for name, figures in found.items():
        if figures and options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(table({name: figures for name, figures in found.items() if figures}))
    failed = [name for name, figures in found.items() if not figures]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run(name: str) -> dict[str, Any]:
    """Run one benchmark, show its output, and return the object of its last line; empty if it failed."""
    command = (sys.executable, "-m", f"bench.{name}", "--json")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.splitlines()
    print("\n".join(lines[:-1]), flush=True)
    if done.returncode or not lines:
        return {}
    figures: dict[str, Any] = json.loads(lines[-1])
    return figures


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay out every figure that is one number."""
    rows = [
        f"{name:<12}{figure:<36}{value:>14,}"
        for name, figures in found.items()
        for figure, value in figures.items()
        if isinstance(value, int | float)
    ]
    return "\n".join(["", f"{'benchmark':<12}{'figure':<36}{'value':>14}", *rows])


if __name__ == "__main__":
    sys.exit(main())
