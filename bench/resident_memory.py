"""What the processes hold in memory while 100,000 texts pass through: `python -m bench.resident_memory [--json]`.

The whole path of bench.inference with the tiny seeded model, so that it takes a minute or two: what could grow with
the number of texts is the service around the model, and the matrices of the model are of fixed size. The first tenth
warms every cache up; the growth after it is what is reported.

May import: everything. With --json the last line of standard output is one object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bench.inference import ours
from bench.inference.stage import standing
from bench.inference.whole_path import WholePath
from infra import tiny_model

PARTS: Final = 10
TEXTS_PER_JOB: Final = 16
GIVE_UP_S: Final = 300.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurement."""
    parser = argparse.ArgumentParser(prog="python -m bench.resident_memory", description="memory over many texts")
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args(argv)
    samples = measure(options.texts)
    growth = {name: round((samples[-1][name] - samples[0][name]) / 2**20, 1) for name in samples[0]}
    print(f"MiB after the last text beyond those after the first tenth: {json.dumps(growth)}")
    if options.json:
        print(json.dumps({"texts": options.texts, "growth_mib": growth, "load_average": os.getloadavg()[0]}))
    return 0


def measure(texts: int) -> list[Mapping[str, int]]:
    """Return resident bytes by process after each of PARTS equal parts of the texts."""
    found = ours.texts(texts // PARTS)
    corpus = (found * -(-texts // PARTS // len(found)))[: texts // PARTS]
    samples: list[Mapping[str, int]] = []
    with tempfile.TemporaryDirectory(prefix="mrgc-bench-") as name:
        models = Path(name) / "models"
        tiny_model.write(models)
        with standing(Path(name), models, dtype="fp32", threads=0) as stage:
            path = WholePath(stage, corpus)
            for part in range(PARTS):
                run = path.run(TEXTS_PER_JOB, give_up_s=GIVE_UP_S)
                samples.append(run.resident_bytes)
                shown = "  ".join(f"{each} {held >> 20}" for each, held in run.resident_bytes.items())
                print(f"{(part + 1) * len(corpus):>8} texts  {run.texts_per_s:7.0f}/s  MiB: {shown}", flush=True)
    return samples


if __name__ == "__main__":
    sys.exit(main())
