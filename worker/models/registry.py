"""The models of one engine, by name and digest.

Called by worker.engine at start. May import: the standard library, mrgc.errors, worker.models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mrgc.errors import ConfigError, UnknownModel
from worker.models.device import choose_dtype, has_native_bf16, open_device
from worker.models.embedder import TextEmbedder
from worker.models.manifest import MANIFEST, read_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from worker.models.base import Model


class Registry:
    """Loaded models.

    Args:
        models: each under the name of its manifest.

    Raises:
        ConfigError: there is none.
    """

    def __init__(self, models: Iterable[Model]) -> None:
        self._models = {model.name: model for model in models}
        if not self._models:
            raise ConfigError("no model folder found")

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def find(self, wanted: str) -> Model:
        """Return the model that a job header names, as `name` or `name@sha256:<digest>` (docs/spec.md §2).

        Raises:
            UnknownModel: no model of that name here, or its digest is another.
        """
        name, _, digest = wanted.partition("@sha256:")
        model = self._models.get(name)
        if model is None or digest not in ("", model.digest):
            raise UnknownModel("no model of that name and digest here")
        return model


def load(folder: Path, *, device: str, dtype: str) -> Registry:
    """Verify and load every model folder below `folder`.

    Args:
        folder: each of its folders holds one model; one without a manifest is refused, not skipped.
        device: MRGC_DEVICE.
        dtype: MRGC_DTYPE.

    Raises:
        ConfigError: a folder is not exactly what its manifest says, or there is none.
    """
    target = open_device(device)
    number_type = choose_dtype(dtype, native_bf16=has_native_bf16(target))
    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    except OSError as error:
        raise ConfigError("MRGC_MODELS cannot be read") from error
    for entry in entries:
        if not (entry / MANIFEST).is_file():
            raise ConfigError(f"model folder {entry.name} has no {MANIFEST}")
    return Registry(TextEmbedder(read_folder(entry), device=target, dtype=number_type) for entry in entries)
