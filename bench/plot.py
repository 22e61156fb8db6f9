"""Draws bench/results/inference.json: `python -m bench.plot` writes docs/inference.svg.

Two rows of bars: rates of ours and of the peers on the same texts, and what is left of the model's rate on the whole
path. Written by hand: a picture of ten rectangles is no reason for a plotting library.

May import: the standard library.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final, NamedTuple

RESULTS: Final = Path("bench/results/inference.json")
PICTURE: Final = Path("docs/inference.svg")

_WIDTH: Final = 780
_LABEL_WIDTH: Final = 270
_BAR_WIDTH: Final = 400
_STEP: Final = 24
_OURS: Final = "#1f6f8b"
_THEIRS: Final = "#b0b7bd"


class Bar(NamedTuple):
    """One bar."""

    label: str
    length: float
    #: What is written behind it.
    shown: str
    is_ours: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Write the picture."""
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description="draw the figures of bench.inference")
    parser.add_argument("--results", type=Path, default=RESULTS, help="what --out wrote (default: %(default)s)")
    parser.add_argument("--to", type=Path, default=PICTURE, help="default: %(default)s")
    options = parser.parse_args(argv)
    options.to.write_text(picture(json.loads(options.results.read_text(encoding="utf-8"))), encoding="utf-8")
    print(options.to)
    return 0


def picture(found: Mapping[str, Any]) -> str:
    """Return the SVG of one run's figures."""
    rates = found["rates"]
    ours = rates["model alone, peers' texts"]
    peers = [
        Bar("mrgc, packed", ours, f"{ours:.0f}", is_ours=True),
        *(
            Bar(label, rates[name], f"{rates[name]:.0f}  (mrgc {found[ratio]:.2f}x)", is_ours=False)
            for label, name, ratio in (
                ("padded, sorted, 2k tokens", "padded, sorted, 2k tokens", "ratio_vs_sorted_padded"),
                (
                    f"sentence-transformers, batch {found['st_best_batch']} (best)",
                    "sentence-transformers, best batch",
                    "ratio_vs_st_best",
                ),
                ("sentence-transformers, batch 32", "sentence-transformers, default", "ratio_vs_st_default"),
                ("padded, 32 as they arrive", "padded, 32 as they arrive", "ratio_vs_arrival_padded"),
            )
        ),
    ]
    path = [
        Bar(label, found[name], f"{found[name]:.2f}", is_ours=True)
        for label, name in (
            ("whole path, 16 texts per job", "e2e_ratio_16"),
            ("whole path, 1 text per job", "e2e_ratio_1"),
            ("model alone, of the GEMM rate", "gemm_fraction"),
        )
    ]
    body, y = [], 20
    body.append(_text(8, y, "Texts per second, the same texts and weights", bold=True))
    body += _bars(peers, y + 12, longest=max(bar.length for bar in peers))
    y += 12 + _STEP * len(peers) + 30
    body.append(_text(8, y, "Fraction of the model alone, and of the hardware", bold=True))
    body += _bars(path, y + 12, longest=1.0)
    y += 12 + _STEP * len(path) + 24
    body.append(
        _text(
            8,
            y,
            f"{found['model']}, {found['dtype']}, {found['processors']} processors ({found['cpu']}), "
            f"load {found['load_average']}, {found['texts']} docstrings, {found['date']}",
        )
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 14}" width="{_WIDTH}" '
        f'font-family="sans-serif" font-size="13">\n'
        f'<rect width="{_WIDTH}" height="{y + 14}" fill="#ffffff"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _bars(bars: Sequence[Bar], top: int, *, longest: float) -> list[str]:
    drawn = []
    for number, bar in enumerate(bars):
        y = top + number * _STEP
        width = _BAR_WIDTH * bar.length / longest
        drawn.append(_text(8, y + 14, bar.label))
        drawn.append(
            f'<rect x="{_LABEL_WIDTH}" y="{y + 2}" width="{width:.1f}" height="{_STEP - 8}" '
            f'fill="{_OURS if bar.is_ours else _THEIRS}"/>'
        )
        drawn.append(_text(_LABEL_WIDTH + width + 6, y + 14, bar.shown))
    return drawn


def _text(x: float, y: float, text: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y}" fill="#222222"{weight}>{escape(text)}</text>'


if __name__ == "__main__":
    sys.exit(main())
