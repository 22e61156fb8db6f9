"""Embedding rate without the service around it, against sentence-transformers: `python -m bench.inference`.

Same texts, same weights, same threads, one process. Every round runs every contender once, in an order that rotates,
so that a neighbour's load hits all alike; ratios are taken within a round, and their median over the rounds is
reported. Bias: tokenising is included on both sides, and the peer's progress bar is off; the peer sorts the whole file
by length, which a service that answers in order of arrival could not do.

May import: everything. The last line of the output is one JSON object with --json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from infra import docstrings
from worker.engine.packer import Packer
from worker.models import float_json, registry
from worker.models.base import Embeddings, Ids, Model, Tokens
from worker.models.device import choose_dtype, has_native_bf16
from worker.models.fetch_minilm import MINILM, package_folder

OURS: Final = "mrgc packed"
PEER: Final = "sentence-transformers"
PEER_BATCHES: Final = (8, 16, 32)
#: Cosine below which a contender does not compute the same thing, and its rate means nothing.
LEAST_COSINE: Final = 0.999

Embed = Callable[[Sequence[str]], Embeddings]


class Timing(NamedTuple):
    """One run of one contender over all texts."""

    wall_s: float
    cpu_s: float


def main() -> None:
    """Run the benchmark and print its table."""
    options = _parser().parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    texts = _texts(options.texts)
    contenders = _contenders(options)
    _ensure_equal(contenders, texts[:32])
    rounds = _measure(contenders, texts, options.rounds)
    report = _report(rounds, texts, options) | {"json_us_per_row": _json_costs()}
    _print(report)
    if options.json:
        print(json.dumps(report))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.inference", description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path(".cache/models"), help="folder with all-minilm-l6-v2")
    parser.add_argument("--texts", type=int, default=256, help="how many docstrings of the standard library")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's choice")
    parser.add_argument("--dtype", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--tokens", type=int, default=4_096, help="token budget of one forward pass")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser


def _texts(count: int) -> list[str]:
    """Draw docstrings in an order without pattern: neighbours in a file are of like length."""
    found = docstrings.texts()
    random.Random(1).shuffle(found)  # noqa: S311  an order, not a secret
    return found[:count]


def _contenders(options: argparse.Namespace) -> dict[str, Embed]:
    model = registry.load(options.models, device="cpu", dtype=options.dtype).find(MINILM.name)
    number_type = choose_dtype(options.dtype, native_bf16=has_native_bf16(torch.device("cpu")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415  takes seconds, also for --help

        peer = SentenceTransformer(str(package_folder()), device="cpu").to(number_type)

    def with_peer(batch: int) -> Embed:
        def embed(texts: Sequence[str]) -> Embeddings:
            found = peer.encode(
                list(texts),
                batch_size=batch,
                normalize_embeddings=True,
                show_progress_bar=False,
                convert_to_tensor=True,
            )
            return np.asarray(found.float().numpy(), dtype=np.float32)

        return embed

    peers = {f"{PEER} batch {batch}": with_peer(batch) for batch in PEER_BATCHES}
    return {OURS: lambda texts: _embed_packed(model, texts, options.tokens)} | peers


def _embed_packed(model: Model, texts: Sequence[str], budget_tokens: int) -> Embeddings:
    """Tokenise all texts, then forward them in token batches in order of arrival, as the engine does."""
    packer: Packer[None, tuple[int, Ids]] = Packer(budget_tokens)
    rows = [(place, tokens.ids) for place, tokens in enumerate(model.tokenise(texts)) if isinstance(tokens, Tokens)]
    packer.add(None, [(row, len(row[1])) for row in rows])
    embeddings = np.zeros((len(texts), model.dimensions), dtype=np.float32)
    while (batch := packer.next_batch()) is not None:
        places = [place for place, _ in batch[1]]
        embeddings[places] = model.forward([ids for _, ids in batch[1]])
    return embeddings


def _ensure_equal(contenders: dict[str, Embed], texts: Sequence[str]) -> None:
    found = {name: embed(texts) for name, embed in contenders.items()}
    for name, embeddings in found.items():
        cosine = float((embeddings * found[OURS]).sum(axis=1).min())
        assert cosine >= LEAST_COSINE, f"{name} computes something else: cosine {cosine}"


def _measure(contenders: dict[str, Embed], texts: Sequence[str], rounds: int) -> list[dict[str, Timing]]:
    measured = []
    names = list(contenders)
    for number in range(rounds):
        order = names[number % len(names) :] + names[: number % len(names)]
        measured.append({name: _time(contenders[name], texts) for name in order})
    return measured


def _time(embed: Embed, texts: Sequence[str]) -> Timing:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    embed(texts)
    return Timing(time.perf_counter() - wall_s, time.process_time() - cpu_s)


def _json_costs() -> dict[str, float]:
    """CPU microseconds to write one embedding of 384 numbers as JSON: ours, and json.dumps of a list."""
    rows = np.random.default_rng(1).standard_normal((512, MINILM.dimensions), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    writers: dict[str, Callable[[], object]] = {
        "mrgc": lambda: float_json.encode_rows(rows),
        "json.dumps": lambda: json.dumps(rows.tolist()),
    }
    return {name: round(min(_cpu_s(write) for _ in range(5)) / len(rows) * 1e6, 1) for name, write in writers.items()}


def _cpu_s(act: Callable[[], object]) -> float:
    start_s = time.process_time()
    act()
    return time.process_time() - start_s


def _report(rounds: list[dict[str, Timing]], texts: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    rows = {}
    for name in sorted(rounds[0], key=lambda name: name != OURS):
        rows[name] = {
            "texts_per_s": round(len(texts) / min(each[name].wall_s for each in rounds), 1),
            "texts_per_cpu_s": round(len(texts) / min(each[name].cpu_s for each in rounds), 1),
            "ratio_wall": round(statistics.median(each[name].wall_s / each[OURS].wall_s for each in rounds), 2),
            "ratio_cpu": round(statistics.median(each[name].cpu_s / each[OURS].cpu_s for each in rounds), 2),
        }
    number_type = choose_dtype(options.dtype, native_bf16=has_native_bf16(torch.device("cpu")))
    return {
        "model": MINILM.name,
        "dtype": str(number_type).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "texts": len(texts),
        "rounds": len(rounds),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "contenders": rows,
    }


def _print(report: dict[str, Any]) -> None:
    print(
        f"{report['model']} {report['dtype']}, {report['threads']} threads, {report['texts']} docstrings, "
        f"{report['rounds']} rounds, load {report['load_average']}"
    )
    print(f"{'':<32}{'texts/s':>10}{'per CPU-s':>11}{'wall x':>9}{'CPU x':>8}")
    for name, row in report["contenders"].items():
        rates = f"{row['texts_per_s']:>10}{row['texts_per_cpu_s']:>11}"
        print(f"{name:<32}{rates}{row['ratio_wall']:>9}{row['ratio_cpu']:>8}")
    costs = ", ".join(f"{name} {cost}" for name, cost in report["json_us_per_row"].items())
    print(f"JSON of one embedding, CPU µs: {costs}")


if __name__ == "__main__":
    main()
