"""Where the time of a GPU goes, from multiplying matrices to the whole path: `python -m bench.gpu`.

One command on a CUDA machine, with nothing to download: a BERT-large with seeded weights is made on the spot, and
all-MiniLM-L6-v2 is measured too where `make models` has laid it out. Stages are those of bench.gpu_stages, each with
one thing more than the one before; rounds take them in turn, in an order that rotates, and a rate is that of the best
round. Ratios are of the model alone (`vs_model`) and, in useful floating point operations, of the matrix products
(`vs_gemm`).

`--device cpu` runs the same code at a small size; its figures say nothing. The report, with the device's name and the
load average, goes to bench/results/ from a CUDA machine, and with --json to the last line of standard output.

May import: everything.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console

from bench import seeded_model
from bench.gpu_stages import OnDevice, OnStack, Work, gemm_flops_per_s, seconds
from bench.inference import ours
from bench.seeded_model import SIZES
from infra.demo import running_stack
from mrgc.errors import ConfigError
from worker.engine.counters import Counters
from worker.engine.tokeniser_pool import TokeniserPool, derive_processes
from worker.models.bert_weights import BertConfig
from worker.models.cuda_embedder import CudaEmbedder
from worker.models.device import choose_dtype, has_native_bf16, open_device
from worker.models.fetch_minilm import MINILM
from worker.models.folder import survey
from worker.models.manifest import CONFIG

TEXTS_PER_JOB: Final = 16
JOBS_PER_BATCH: Final = 64
#: Stages in this process, by name; the rest needs a stack.
ON_DEVICE: Final = ("model", "copies", "tokenise", "tokenise_alone", "unscrubbed", "scrubbed")
ON_STACK: Final = ("crypto", "path")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark, print its tables, keep its report."""
    options = _parser().parse_args(argv)
    try:
        device = open_device(options.device)
    except ConfigError as error:
        sys.stderr.write(f"bench.gpu: {error}\n")
        return 2
    options.size = options.size or ("large" if device.type == "cuda" else "tiny")
    report: dict[str, Any] = _machine(device) | {"models": {}}
    with tempfile.TemporaryDirectory(prefix="mrgc-bench-") as name:
        seeded = Path(name) / "seeded"
        folders = [seeded_model.write(seeded, f"seeded-{options.size}", SIZES[options.size])]
        if (options.models / MINILM.name).is_dir():
            folders.append(options.models / MINILM.name)
        for folder in folders:
            report["models"][folder.name] = measured = _measure(folder, device, options)
            _print(folder.name, measured, report)
    report["load_average_after"] = _load()
    results = options.results or (Path(__file__).parent / "results" if device.type == "cuda" else None)
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        slug = re.sub(r"[^a-z0-9]+", "-", str(report["device"]).lower()).strip("-")
        (results / f"gpu-{slug}.json").write_text(json.dumps(report, indent=1) + "\n")
    if options.json:
        print(json.dumps(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to try the code (default: %(default)s)")
    parser.add_argument("--size", choices=sorted(SIZES), help="of the seeded model (default: large; tiny on a cpu)")
    parser.add_argument("--models", type=Path, default=Path(".cache/models"), help="folder with all-minilm-l6-v2")
    parser.add_argument("--dtype", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--texts", type=int, default=20_000, help="docstrings, repeated as needed (%(default)s)")
    parser.add_argument("--tokens", type=int, default=32_768, help="token budget of one batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokenisers", type=int, help="processes (default: as the engine derives them)")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where the report goes (default: bench/results)")
    parser.add_argument("--json", action="store_true", help="print the report as the last line")
    return parser


def _machine(device: torch.device) -> dict[str, Any]:
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else "cpu",
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "load_average": _load(),
    }


def _load() -> list[float]:
    return [round(load, 2) for load in os.getloadavg()]


def _measure(folder: Path, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    dtype = choose_dtype(options.dtype, native_bf16=has_native_bf16(device))
    model = CudaEmbedder(survey(folder), device=device, dtype=dtype)
    budget_tokens = max(options.tokens, model.max_tokens)
    model.warm_up(budget_tokens)
    work = _work(model, options.texts, budget_tokens)
    rows = [row for batch in work.batches for row in batch]
    tokens = sum(map(len, rows))
    config = BertConfig.parse((folder / CONFIG).read_bytes())
    gemm = gemm_flops_per_s(
        device, dtype, tokens=budget_tokens, width=config.hidden_size, inner=config.intermediate_size
    )
    counters = Counters()
    pool = TokeniserPool(
        [model], processes=_tokenisers(options, device), on_death=lambda: counters.add(tokeniser_deaths=1)
    )
    try:
        stages = OnDevice(model, pool, work, budget_tokens)
        acts: dict[str, Callable[[], object]] = {name: getattr(stages, name) for name in ON_DEVICE}
        times = _rounds(acts, options.rounds)
    finally:
        pool.close()
    buckets = sum(next(size for size in model.runner.sizes if size >= sum(map(len, batch))) for batch in work.batches)
    on_stack, engine = _on_stack(folder, work, device, options.rounds)
    flops = ours.Work.of_folder(folder).flop(rows)
    best = {name: min(each) for name, each in (times | on_stack).items()}
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "attention": "padded" if model.runner.pads else "varlen",
        "texts": len(work.texts),
        "tokens": tokens,
        "padding": round(buckets / tokens - 1, 4),
        "token_budget": budget_tokens,
        "tokenisers": len(pool.pids),
        "tokeniser_deaths": counters.snapshot()["tokeniser_deaths"],
        "gemm_tflops_per_s": round(gemm / 1e12, 3),
        "stages": {
            name: {
                "texts_per_s": round(len(work.texts) / best_s, 1),
                "tokens_per_s": round(tokens / best_s),
                "vs_model": round(best["model"] / best_s, 4),
                "vs_gemm": None if name == "tokenise_alone" else round(flops / best_s / gemm, 4),
            }
            for name, best_s in best.items()
        },
        "scrub": {
            "ms": round((best["scrubbed"] - best["unscrubbed"]) / len(work.batches) * 1_000, 3),
            "ratio": round(
                statistics.median(on / off for on, off in zip(times["scrubbed"], times["unscrubbed"], strict=True)), 4
            ),
        },
        "engine": engine,
    }


def _tokenisers(options: argparse.Namespace, device: torch.device) -> int:
    if options.tokenisers is not None:
        return int(options.tokenisers)
    devices = torch.cuda.device_count() if device.type == "cuda" else 0
    return derive_processes(cores=len(os.sched_getaffinity(0)), devices=devices)


def _work(model: CudaEmbedder, count: int, budget_tokens: int) -> Work:
    """Draw docstrings in an order without pattern, and tokenise them once."""
    found = ours.texts(count)
    texts = (found * -(-count // len(found)))[:count]
    return Work(texts, list(ours.pack(ours.tokenise(model, texts), budget_tokens)))


def _rounds(acts: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time every act in every round, in an order that rotates; a first call of each is not counted."""
    names = list(acts)
    for name in names:
        acts[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            times[name].append(seconds(acts[name]))
    return times


def _on_stack(
    folder: Path, work: Work, device: torch.device, rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Time the stages that need a stack, and tell how much of the whole path each stage of the engine was at work."""
    jobs = [work.texts[start : start + TEXTS_PER_JOB] for start in range(0, len(work.texts), TEXTS_PER_JOB)]
    times: dict[str, list[float]] = {stage: [] for stage in ON_STACK}
    busy: dict[str, float] = {}
    with running_stack(folder.parent, Console(stderr=True), device=str(device)) as directory:
        stack = OnStack(directory, folder.name, jobs)
        with stack.client:
            stack.crypto(stack.sealed(), jobs_per_batch=JOBS_PER_BATCH)
            for _ in range(rounds):
                sealed = stack.sealed()
                times["crypto"].append(seconds(partial(stack.crypto, sealed, jobs_per_batch=JOBS_PER_BATCH)))
                sealed, before = stack.sealed(), stack.health().counters
                times["path"].append(seconds(partial(stack.path, sealed)))
                busy = _busy(before, stack.health().counters, times["path"][-1])
    return times, busy


def _busy(before: dict[str, int], after: dict[str, int], wall_s: float) -> dict[str, float]:
    """Return the share of the time that each stage of the engine was at work."""
    names = ("open", "forward", "seal", "scrub")
    return {name: round((after[f"{name}_ms"] - before[f"{name}_ms"]) / wall_s / 1_000, 3) for name in names}


def _print(name: str, measured: dict[str, Any], report: dict[str, Any]) -> None:
    load = report["load_average"]
    print(f"{name} {measured['dtype']}, attention {measured['attention']}, {report['device']}, load {load}:")
    print(
        f"{measured['texts']} texts, {measured['tokens']} tokens, padded by {measured['padding']:.1%}, "
        f"{measured['tokenisers']} tokeniser processes, gemm {measured['gemm_tflops_per_s']} TFLOP/s"
    )
    print(f"{'stage':<16}{'texts/s':>12}{'tokens/s':>14}{'vs model':>10}{'vs gemm':>10}")
    for stage, row in measured["stages"].items():
        share = "–" if row["vs_gemm"] is None else f"{row['vs_gemm']:.3f}"
        print(f"{stage:<16}{row['texts_per_s']:>12}{row['tokens_per_s']:>14}{row['vs_model']:>10.3f}{share:>10}")
    scrub = measured["scrub"]
    print(f"scrub after every batch: {scrub['ms']} ms each, {scrub['ratio']:.3f} of the time without")
    busy = ", ".join(f"{stage} {share:.0%}" for stage, share in measured["engine"].items())
    print(f"whole path, share of the time that each stage of the engine was at work: {busy}\n")


if __name__ == "__main__":
    sys.exit(main())
