"""The inference benchmark's own arithmetic: turns, their budget, the work that counts, the picture."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from bench import plot
from bench.inference.ours import Work
from bench.inference.rounds import Budget, Measured, Rounds, rate, take_turns

ROOT = Path(__file__).parents[2]


class Clock:
    """Monotonic seconds that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def measure(rounds: int, *, limit_s: float, turn_s: float) -> tuple[Rounds, list[str]]:
    """Let three contenders take turns of a length; returns what was measured, and who came when."""
    clock, came = Clock(), list[str]()

    def turn(name: str) -> Measured:
        came.append(name)
        clock.now_s += turn_s
        return Measured(float(len(came)), 2.0 * len(came))

    turns = {name: lambda name=name: turn(name) for name in "abc"}
    return take_turns(turns, rounds, Budget(limit_s, clock), lambda _line: None), came


def test_the_order_rotates_from_round_to_round() -> None:
    """Nobody always follows the same neighbour."""
    measured, came = measure(3, limit_s=1_000, turn_s=1)
    assert "".join(came) == "abcbcacab"
    assert rate(measured["a"]) == 6
    assert [turn.ratio for turn in measured["a"]] == [0.5] * 3


def test_no_round_starts_that_would_end_after_the_budget() -> None:
    """Three turns of ten seconds a round fit twice into 70 seconds."""
    measured, _ = measure(9, limit_s=70, turn_s=10)
    assert [len(turns) for turns in measured.values()] == [2, 2, 2]


def test_the_first_round_runs_whatever_the_budget_says() -> None:
    """A benchmark without a figure would be none."""
    measured, _ = measure(9, limit_s=1, turn_s=10)
    assert [len(turns) for turns in measured.values()] == [1, 1, 1]


def test_the_work_of_minilm_is_that_of_its_weights_and_its_pairs(tmp_path: Path) -> None:
    """Six layers of 1.77 million weights each twice per token, and 4 × 384 operations per pair of tokens and layer."""
    sizes = {"hidden_size": 384, "intermediate_size": 1_536, "num_hidden_layers": 6}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    work = Work.of_folder(tmp_path)
    assert work == Work(21_233_664, 9_216)
    assert work.flop([np.zeros(10, np.int32), np.zeros(1, np.int32)]) == 11 * 21_233_664 + 101 * 9_216


@pytest.mark.skipif(not plot.RESULTS.exists(), reason="no committed figures")
def test_the_picture_of_the_committed_figures_is_the_committed_picture() -> None:
    """README's plot shows bench/results/inference.json and nothing else."""
    drawn = plot.picture(json.loads((ROOT / plot.RESULTS).read_text(encoding="utf-8")))
    assert drawn == (ROOT / plot.PICTURE).read_text(encoding="utf-8")
    assert ET.fromstring(drawn).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314  our own text
