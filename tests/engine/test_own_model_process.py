"""The engine process serves several models, the one of docs/models.md among them, from sealed job to sealed result."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from infra import tiny_model
from tests.engine.host import MODEL, EngineProcess, Host, Intake
from tests.models import own_model
from worker.models import make_manifest

ROOT: Final = Path(__file__).parents[2]


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of model folders with the tiny model and the shown one, whose package lies beside it."""
    models = tmp_path / "models"
    tiny_model.write(models)
    own_model.write_files(models / own_model.NAME)
    shown = own_model.shown("python -m worker.models.make_manifest models/hashed-words").split()
    monkeypatch.setattr(sys, "argv", ["make_manifest", str(models / own_model.NAME), *shown[4:]])
    assert make_manifest.main() == make_manifest.WRITTEN
    (tmp_path / "site").mkdir()
    own_model.install(tmp_path / "site")
    return models


def settings(tmp_path: Path, host: Host, models: Path) -> dict[str, str]:
    """The engine's settings, with the package on its path."""
    return {
        "MRGC_ENCLAVE": str(host.enclave),
        "MRGC_TOKEN_FILE": str(host.token_file),
        "MRGC_MODELS": str(models),
        "PYTHONPATH": str(tmp_path / "site"),
    }


def test_each_job_is_answered_by_the_model_that_it_names(tmp_path: Path, host: Host, both: Path) -> None:
    """One batch with jobs of both models: each result has its own model's numbers, name and digest."""
    host.boot()
    started = EngineProcess(tmp_path, **settings(tmp_path, host, both), MRGC_MODEL_HANDLERS=own_model.NAME)
    with started.running():
        started.listening().healthy()
        with Intake(started.path) as intake:
            digest = intake.ready.models[own_model.NAME].digest
            jobs = [
                host.job(["one two", "three"], model=own_model.NAME),
                host.job(["one two"]),
                host.job(["one two"], model=f"{own_model.NAME}@sha256:{digest}"),
                host.job(["one two"], model=f"{own_model.NAME}@sha256:{'0' * 64}"),
                host.job(["x"], model=own_model.NAME, parameters={"labels": ["a", "b"]}),
            ]
            outcomes = intake.run(jobs)
    own, tiny, pinned = (host.embeddings(job, outcome) for job, outcome in zip(jobs[:3], outcomes[:3], strict=True))
    assert (own.shape, tiny.shape) == ((2, own_model.WIDTH), (1, 64))
    assert np.array_equal(own[:1], pinned)
    assert host.result(jobs[0], outcomes[0])[0].model == f"{own_model.NAME}@sha256:{digest}"
    assert host.result(jobs[1], outcomes[1])[0].model.startswith(f"{MODEL}@sha256:")
    assert host.codes(jobs[3], outcomes[3]) == ["unknown_model"]
    assert host.codes(jobs[4], outcomes[4]) == ["bad_payload"]


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({}, "model folder hashed-words: its handler hashed-words is not named in MRGC_MODEL_HANDLERS"),
        ({"MRGC_MODEL_MEMORY_BYTES": "70000"}, "more than the 70000 of MRGC_MODEL_MEMORY_BYTES: tiny-bert"),
    ],
)
def test_it_does_not_start_with_a_model_that_may_not_be_served(
    tmp_path: Path, host: Host, both: Path, changed: dict[str, str], complaint: str
) -> None:
    """Exit code 2 and one line that says which model and which setting."""
    started = EngineProcess(tmp_path, **settings(tmp_path, host, both), **changed)
    with started.running():
        assert started.process.wait(50) == 2
    assert complaint in json.loads(started.log.read_text().splitlines()[-1])["reason"]
