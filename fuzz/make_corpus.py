"""Writes the seeds of every target into fuzz/corpus: `python -m fuzz.make_corpus`.

Seeds come from tests/vectors and from the builders of each format, and are NAME.seed. What fuzzing adds beside them is
named by its hash, and stays out of the repository.
"""

from __future__ import annotations

import re
from pathlib import Path

from fuzz import registry


def write(corpus: Path) -> None:
    """Write all seeds below a folder, one folder per target."""
    for name in registry.NAMES:
        folder = corpus / name
        folder.mkdir(parents=True, exist_ok=True)
        for seed, data in registry.load(name).seeds().items():
            (folder / file_name(seed)).write_bytes(data)


def file_name(seed: str) -> str:
    """Return the file name of a seed."""
    return re.sub(r"[^a-z0-9]+", "-", seed.lower()).strip("-") + ".seed"


if __name__ == "__main__":
    write(registry.CORPUS)
