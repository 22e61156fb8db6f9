"""How near to the hardware's limit inference is: `python -m bench.inference [--json]`.

Real texts (docstrings of the standard library), all-MiniLM-L6-v2, two questions. How fast is the model alone, beside
sentence-transformers and beside the matrix products of this machine? And how much of that rate is left on the whole
path, with queue, enclave, sealing and storing, and every process of the service on the same cores?

All contenders take turns within one run, each framed by the model itself, on half of the same texts before and on half
after it; a ratio is taken within a turn, and its median over the rounds is reported. What they compute is held against
sentence-transformers in float32, text by text. With --json the last line of standard output is one object; --out writes
it to a file as well. May import: everything.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import torch

from bench.inference import ours, report
from bench.inference.contenders import Contenders, Settings
from bench.inference.rounds import Budget, take_turns
from bench.inference.stage import standing

_BEGAN_S: Final = time.monotonic()
_WAIT_POLICY: Final = "OMP_WAIT_POLICY"


def main() -> int:
    """Run the benchmark; returns the exit code."""
    options = _parser().parse_args()
    _wait_asleep()
    if options.threads:
        torch.set_num_threads(options.threads)
    # Twenty minutes in all: what comes before the rounds and after them takes about two.
    budget = Budget(60.0 * options.minutes)
    settings = Settings(options.models, options.dtype, ours.texts(options.texts), options.peer_texts)
    with tempfile.TemporaryDirectory(prefix="mrgc-bench-") as name:
        progress("starting Redis, KMS, enclave, engine and worker")
        with standing(Path(name), options.models, dtype=options.dtype, threads=options.threads) as stage:
            progress("loading the peer, looking for its best batch size")
            contenders = Contenders(settings, stage)
            progress(f"texts/s by batch size: {report.rates(contenders.swept)}")
            measured = take_turns(contenders.turns(), options.rounds, budget, progress)
            progress("comparing every text with the float32 oracle")
            summary = report.summary(measured, contenders)
    print(report.table(summary))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(summary, indent=1) + "\n")
    if options.json:
        print(json.dumps(summary), flush=True)
    return 0


def _wait_asleep() -> None:
    """Start this program again with OpenMP's waiting threads asleep; it reads that at its load only.

    Spinning, which is the default, they take processors from everything else on the machine, their own work among it.
    On a shared machine this nearly halves the processor time of sentence-transformers.
    """
    if _WAIT_POLICY not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, _WAIT_POLICY: "PASSIVE"})  # noqa: S606


def progress(line: str) -> None:
    """Tell how far the benchmark is."""
    print(f"{time.monotonic() - _BEGAN_S:5.0f} s  {line}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.inference", description="inference beside its peers, the hardware and the whole path"
    )
    parser.add_argument("--models", type=Path, default=Path(".cache/models"), help="folder with all-minilm-l6-v2")
    parser.add_argument("--texts", type=int, default=1_024, help="docstrings for model and whole path")
    parser.add_argument("--peer-texts", type=int, default=192, help="how many of them the peers get")
    parser.add_argument("--rounds", type=int, default=5, help="at most")
    parser.add_argument("--minutes", type=float, default=12.0, help="start no round that would end later")
    parser.add_argument("--threads", type=int, default=0, help="of every contender; 0 leaves the default of each")
    parser.add_argument("--dtype", choices=("auto", "bf16", "fp32"), default="auto", help="as MRGC_DTYPE")
    parser.add_argument("--out", type=Path, help="write the figures to this file as well")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
