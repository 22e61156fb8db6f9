"""The model of one's own that docs/models.md shows, installed as printed there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

import safetensors.torch
import torch

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "models.md"
NAME: Final = "hashed-words"
ROWS: Final = 512
WIDTH: Final = 32


def shown(opening: str) -> str:
    """Return the block of docs/models.md that begins with these words."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if block.startswith(opening)]
    return str(found)


def install(site: Path) -> None:
    """Lay out the shown module and its entry point as pip leaves an installed package."""
    (site / "hashed_words.py").write_text(shown('"""Embeddings of hashed words'), encoding="utf-8")
    package = site / "hashed_words-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: hashed-words\nVersion: 1.0\n", encoding="utf-8")
    # The shown lines of pyproject.toml are what a build backend turns into these.
    table, entry = shown("[project.entry-points").splitlines()
    group = re.fullmatch(r'\[project\.entry-points\."(.*)"\]', table)
    name, value = re.fullmatch(r'([\w-]+) = "(.*)"', entry).groups()  # type: ignore[union-attr]  # or the test fails
    assert group is not None
    (package / "entry_points.txt").write_text(f"[{group[1]}]\n{name} = {value}\n", encoding="utf-8")


def write_files(folder: Path) -> None:
    """Write the files of a model folder, all but the manifest."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(3)
    tensors = {
        "words.weight": torch.randn(ROWS, WIDTH, generator=generator),
        "norm.weight": torch.ones(WIDTH),
        "norm.bias": torch.zeros(WIDTH),
    }
    (folder / "config.json").write_text(json.dumps({"rows": ROWS}), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(tensors))
