"""The runner over parsers with known faults: what it must notice, it notices."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from fuzz import __main__ as command
from fuzz.runner import Limits, Outcome, run

needs_atheris = pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed: make fuzz does that")

RUNS = 40_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a place for corpus and findings."""
    return tmp_path


def fuzz(folder: Path, toy: str) -> Outcome:
    """Fuzz one of the toys."""
    limits = Limits(seconds=0, runs=RUNS)
    return run(toy, limits, corpus=folder / "corpus", crashes=folder / "crashes", module=f"tests.fuzz.toy_{toy}")


@needs_atheris
def test_a_run_without_finding_counts_its_inputs(folder: Path) -> None:
    """A parser without fault gets all inputs, some are accepted, and memory was measured."""
    outcome = fuzz(folder, "good")
    assert (outcome.failure, outcome.artifacts) == ("", ())
    assert outcome.inputs >= RUNS
    assert 0 < outcome.accepted < outcome.inputs
    assert outcome.warm_bytes > 0
    assert outcome.last_bytes > 0


@needs_atheris
def test_a_foreign_error_is_a_finding_and_its_input_is_kept(folder: Path) -> None:
    """A KeyError ends the run, names itself, and leaves the input that raises it."""
    outcome = fuzz(folder, "raising")
    assert outcome.failure
    assert "KeyError" in outcome.log
    (kept,) = outcome.artifacts
    assert len(Path(kept).read_bytes()) > 4


@needs_atheris
def test_memory_that_grows_is_a_finding(folder: Path) -> None:
    """A parser that keeps 4 KiB of every input fails, although it raises nothing."""
    assert "resident memory grew" in fuzz(folder, "leaking").failure


@needs_atheris
def test_allocating_what_an_input_declares_is_a_finding(folder: Path) -> None:
    """A declared length of gigabytes ends the run of a parser that believes it."""
    outcome = fuzz(folder, "allocating")
    assert "MemoryError" in outcome.log
    assert outcome.artifacts


@needs_atheris
def test_the_command_fuzzes_a_real_target(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m fuzz --json` prints one object per target, and ends with 0 when nothing was found."""
    options = ["--target", "cose", "--runs", "2000", "--corpus", str(folder / "corpus"), "--crashes", str(folder / "c")]
    assert command.main([*options, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["target"] == "cose"
    assert found["inputs"] >= 2_000
    assert found["accepted"] > 0
    assert list((folder / "corpus" / "cose").iterdir())


def test_without_atheris_the_command_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where atheris has no wheel, `python -m fuzz` ends with 2 and names what works without it."""
    monkeypatch.setattr(command, "find_spec", lambda _: None)
    assert command.main([]) == 2
    assert "pytest tests/fuzz" in capsys.readouterr().err
