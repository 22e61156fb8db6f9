"""Model folders for the tests of models: the tiny one, and MiniLM where numbers are judged."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
import torch

from infra import docstrings, tiny_model
from worker.models import registry
from worker.models.base import Model
from worker.models.fetch_minilm import fetch

#: Two lanes, so that batches are cut whatever machine this is.
THREADS: Final = 2


@pytest.fixture(scope="session", autouse=True)
def _fixed_threads() -> None:
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of model folders that holds the tiny model. Tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model.write(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Model:
    """The tiny model, loaded in float32."""
    return registry.load(tiny_folder, device="cpu", dtype="fp32").find(tiny_model.NAME)


@pytest.fixture(scope="session")
def minilm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of model folders that holds all-MiniLM-L6-v2."""
    folder = tmp_path_factory.mktemp("minilm")
    fetch(folder)
    return folder


@pytest.fixture(scope="session")
def minilm(minilm_folder: Path) -> Model:
    """all-MiniLM-L6-v2, loaded in float32."""
    return registry.load(minilm_folder, device="cpu", dtype="fp32").find("all-minilm-l6-v2")


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Real texts of 5 to some hundred tokens, spread over the standard library, short ones among them."""
    found = docstrings.texts()
    return ["", "a", "two words", *found[:: max(1, len(found) // 45)]]
