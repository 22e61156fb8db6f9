"""Write the manifest of a model folder: `python -m worker.models.make_manifest FOLDER --licence TEXT`.

Files, hashes and the stored type are read from the folder; limits from its config.json where they are not given. The
folder is then judged as an engine would judge it, and a manifest that does not pass is not left behind.

May import: the standard library, mrgc.errors, mrgc.wire, worker.models.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mrgc.errors import ConfigError, FormatError
from mrgc.wire import strict_json
from worker.models import data_formats
from worker.models.folder import ModelFolder, naming, survey
from worker.models.manifest import (
    CLASSIFY,
    CLASSIFY_TOKENS,
    CONFIG,
    EMBED,
    GENERATE,
    MANIFEST,
    MAX_TOKENS,
    POOLINGS,
    Manifest,
)
from worker.models.safetensors_header import read_header

if TYPE_CHECKING:
    from collections.abc import Sequence

_DTYPES: Final = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
WRITTEN: Final = 0
REFUSED: Final = 1


def make(folder: Path, options: argparse.Namespace) -> ModelFolder:
    """Write `folder`/manifest.json.

    Args:
        folder: a model folder without a manifest.
        options: of the command line.

    Returns:
        The folder, verified.

    Raises:
        ConfigError: there is a manifest already, a value is neither given nor found, or an engine would refuse the
            folder.
    """
    path = folder / MANIFEST
    if path.exists() and not options.force:
        raise ConfigError(f"there is a {MANIFEST}: --force replaces it, and with it the model's digest")
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.name != MANIFEST)
        for name in names:
            data_formats.ensure_name(name)
        manifest = _manifest(folder, names, options)
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(manifest.to_bytes())
        return _judged(folder, path, before)
    except OSError as error:
        raise ConfigError(f"{error.filename or folder} cannot be read or written: {error.strerror}") from error


def _manifest(folder: Path, names: Sequence[str], options: argparse.Namespace) -> Manifest:
    config = _config(folder) if CONFIG in names else {}
    labels = _labels(config) if options.task in (CLASSIFY, CLASSIFY_TOKENS) else ()
    return Manifest(
        name=folder.resolve().name,
        version=options.version,
        task=options.task,
        licence=options.licence,
        max_tokens=_max_tokens(config) if options.max_tokens is None else options.max_tokens,
        dimensions=_dimensions(config, labels, options) if options.dimensions is None else options.dimensions,
        pooling=options.pooling or POOLINGS.get(options.task, ("none",))[0],
        normalize=options.task == EMBED,
        dtype=_dtype(folder, names),
        files={name: _hash(folder / name) for name in names},
        labels=labels,
        handler=options.handler,
    )


def _judged(folder: Path, path: Path, before: bytes | None) -> ModelFolder:
    try:
        found = survey(folder)
        found.verify()
    except ConfigError:
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)
        raise
    return found


def _config(folder: Path) -> dict[str, Any]:
    try:
        fields = strict_json.parse((folder / CONFIG).read_bytes(), max_values=262_144)
    except FormatError as error:
        raise ConfigError(f"{CONFIG} is not strict json: {error}") from error
    return fields if type(fields) is dict else {}


def _max_tokens(config: dict[str, Any]) -> int:
    found, padding = config.get("max_position_embeddings"), config.get("pad_token_id")
    if type(found) is not int:
        raise ConfigError(f"{CONFIG} has no max_position_embeddings: --max-tokens has to say it")
    if "roberta" in str(config.get("model_type")) and type(padding) is int:
        found -= padding + 1  # its positions begin behind that of the padding token
    return min(found, MAX_TOKENS)


def _dimensions(config: dict[str, Any], labels: Sequence[str], options: argparse.Namespace) -> int:
    if labels or options.task == GENERATE:
        return len(labels)
    found = config.get("hidden_size")
    if type(found) is not int:
        raise ConfigError(f"{CONFIG} has no hidden_size: --dimensions has to say it")
    return found


def _labels(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the labels by their number, as transformers writes them into config.json."""
    found = config.get("id2label")
    if type(found) is not dict or found.keys() != {str(number) for number in range(len(found))}:
        raise ConfigError(f"{CONFIG} has no id2label with a name for each number from 0 on")
    return tuple(found[str(number)] for number in range(len(found)))


def _dtype(folder: Path, names: Sequence[str]) -> str:
    """Return the type of the stored weights, which all floating-point tensors must share."""
    found = set()
    for name in filter(data_formats.is_weights, names):
        with (folder / name).open("rb") as file:
            entries = read_header(file, file_bytes=(folder / name).stat().st_size, name=name)
        found |= {_DTYPES[entry.dtype] for entry in entries if entry.dtype in _DTYPES}
    if len(found) != 1:
        raise ConfigError(f"there are no weights as .safetensors, of one type among {', '.join(_DTYPES)}")
    return found.pop()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(
        prog="python -m worker.models.make_manifest",
        description="Write the manifest of a model folder and judge the folder as an engine would.",
        epilog="Exit codes: 0 written, 1 refused, 2 usage. Prints NAME@sha256:DIGEST, as jobs may name the model.",
    )
    made.add_argument("folder", type=Path, metavar="FOLDER", help="model folder; its name is the model's name")
    made.add_argument("--licence", required=True, metavar="TEXT", help="licence of the weights, by its SPDX name")
    made.add_argument("--task", default=EMBED, help=f"what the model answers: {', '.join(POOLINGS)} [{EMBED}]")
    made.add_argument("--version", default="1", metavar="TEXT", help="the operator's own name for these weights [1]")
    made.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help=f"most tokens of one input [config.json's max_position_embeddings, at most {MAX_TOKENS}]",
    )
    made.add_argument("--dimensions", type=int, metavar="D", help="numbers per answer [from config.json]")
    made.add_argument("--pooling", help="how tokens become one answer [as usual for the task]")
    made.add_argument("--handler", default="", metavar="NAME", help="entry point of mrgc.models [none]")
    made.add_argument("--force", action="store_true", help="replace a manifest that is there")
    return made


def main() -> int:
    """Run the command line; print the model as a job may name it."""
    options = parser().parse_args()
    try:
        with naming(options.folder.resolve().name):
            made = make(options.folder, options)
    except ConfigError as error:
        sys.stderr.write(f"make_manifest: {error}\n")
        return REFUSED
    sys.stdout.write(f"{made.manifest.name}@sha256:{made.digest}\n")
    return WRITTEN


if __name__ == "__main__":
    sys.exit(main())
