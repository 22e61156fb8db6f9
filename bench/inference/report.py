"""The figures of a run: one flat object, and a table for a person.

May import: the standard library, numpy, torch, bench.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from bench.inference import contenders as names
from bench.inference.contenders import Contenders, least_cosine
from bench.inference.json_cost import json_us_per_row
from bench.inference.rounds import Rounds, rate
from worker.models.fetch_minilm import MINILM

#: Cosine below which a figure means nothing, because something else was computed.
LEAST_COSINE: Final = 0.999


def summary(measured: Rounds, contenders: Contenders) -> dict[str, Any]:
    """Return the figures of the last line.

    Raises:
        AssertionError: an embedding is not the oracle's.
    """
    load = os.getloadavg()[0]
    oracle = contenders.oracle()
    cosines = {name: least_cosine(found, oracle) for name, found in contenders.embeddings.items()}
    assert min(cosines.values()) >= LEAST_COSINE, f"something else was computed: {cosines}"
    ratios = {name: [turn.ratio for turn in turns] for name, turns in measured.items()}
    of_figures = {
        "ratio_vs_st_best": [1 / ratio for ratio in ratios[names.BEST]],
        "ratio_vs_st_default": [1 / ratio for ratio in ratios[names.DEFAULT]],
        "ratio_vs_sorted_padded": [1 / ratio for ratio in ratios[names.SORTED]],
        "ratio_vs_arrival_padded": [1 / ratio for ratio in ratios[names.ARRIVING]],
        "gemm_fraction": [1 / ratio for ratio in ratios[names.GEMM]],
        "e2e_ratio_16": ratios[names.PATH_16],
        "e2e_ratio_1": ratios[names.PATH_1],
        "e2e_ratio_16_safetensors": ratios[names.PATH_16_TENSOR],
    }
    model_us = contenders.model_cpu_us()
    cpu_us = {name: contenders.cpu_us(name) for name in names.PATHS}
    return {
        "texts_per_s_model_only": round(_model_rate(measured, names.PATHS), 1),
        **{name: round(statistics.median(found), 3) for name, found in of_figures.items()},
        "cosine_min": round(min(cosines.values()), 7),
        "load_average": round(load, 2),
        "e2e_cpu_ratio_16": round(model_us / sum(cpu_us[names.PATH_16].values()), 3),
        "e2e_cpu_ratio_1": round(model_us / sum(cpu_us[names.PATH_1].values()), 3),
        "max_abs_diff": float(np.abs(contenders.embeddings[names.MODEL] - oracle).max()),
        "dtype": str(contenders.dtype).removeprefix("torch."),
        "gflop_per_s_useful": round(_model_rate(measured, [names.GEMM]), 1),
        "st_best_batch": contenders.best_batch,
        "texts": len(contenders.settings.texts),
        "tokens": contenders.tokens,
        "rounds": len(measured[names.GEMM]),
        "threads": torch.get_num_threads(),
        "cpu": cpu_name(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "model": MINILM.name,
        "rates": {
            names.MODEL: round(_model_rate(measured, names.PATHS), 1),
            "model alone, peers' texts": round(_model_rate(measured, names.PEERS), 1),
            **{name: round(rate(turns), 1) for name, turns in measured.items()},
        },
        "spreads": {name: [round(min(found), 3), round(max(found), 3)] for name, found in of_figures.items()},
        "cpu_us_per_text": {names.MODEL: {"bench": round(model_us)}}
        | {name: {part: round(cost) for part, cost in costs.items()} for name, costs in cpu_us.items()},
        "json_us_per_row": json_us_per_row(),
    }


def _model_rate(measured: Rounds, contenders: Sequence[str]) -> float:
    return statistics.median(turn.model for name in contenders for turn in measured[name])


def table(found: Mapping[str, Any]) -> str:
    """Lay the figures out for a person."""
    machine = f"{found['threads']} threads, {found['cpu']}, load {found['load_average']}"
    work = f"{found['texts']} texts of {found['tokens'] / found['texts']:.0f} tokens, {found['rounds']} rounds"
    lines = [
        f"{found['model']}, {found['dtype']}, {machine}, {work}",
        "",
        f"{'median rate':<36}{'texts/s':>10}",
        *(f"{name:<36}{rate:>10}" for name, rate in found["rates"].items()),
        "",
        f"{'ratio within a turn':<36}{'median':>10}{'least':>10}{'most':>10}",
        *(f"{name:<36}{found[name]:>10}{low:>10}{high:>10}" for name, (low, high) in found["spreads"].items()),
        "",
        *(f"CPU µs per text, {name}: {json.dumps(costs)}" for name, costs in found["cpu_us_per_text"].items()),
        f"CPU µs to write one embedding as JSON: {json.dumps(found['json_us_per_row'])}",
        f"least cosine to the float32 oracle {found['cosine_min']}, greatest difference {found['max_abs_diff']:.1e}",
    ]
    return "\n".join(lines)


def rates(swept: Mapping[int, float]) -> str:
    """Return rates by batch size for a line of progress."""
    return ", ".join(f"{batch}: {rate:.1f}" for batch, rate in swept.items())


def cpu_name() -> str:
    """Return the processor's name from proc(5), /proc/cpuinfo, or the architecture where there is none."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.machine())
