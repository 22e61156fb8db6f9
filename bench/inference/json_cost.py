"""What it costs to write one embedding of 384 numbers as JSON: ours, and json.dumps of a list.

May import: the standard library, numpy, worker.models.float_json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np

from worker.models import float_json
from worker.models.fetch_minilm import MINILM


def json_us_per_row() -> dict[str, float]:
    """Return CPU microseconds per embedding, the least of five runs."""
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
