"""The models of one engine, by name and digest.

Called by worker.engine at start. May import: the standard library, torch, mrgc.errors, worker.models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mrgc.errors import ConfigError, UnknownModel
from worker.models import budget
from worker.models.cuda_embedder import CudaEmbedder
from worker.models.device import choose_dtype, has_native_bf16, open_device, total_bytes
from worker.models.embedder import TextEmbedder
from worker.models.folder import naming, survey
from worker.models.generator import KV_CACHE_BYTES, TextGenerator
from worker.models.handlers import ensure_model
from worker.models.handlers import find as find_handler
from worker.models.manifest import GENERATE, MANIFEST

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    import torch

    from worker.models.base import Model
    from worker.models.folder import ModelFolder
    from worker.models.handlers import Handler

#: Classes for the tasks that the encoder does not do.
_TASKS: Final[Mapping[str, Handler]] = {GENERATE: TextGenerator}


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


def load(
    folder: Path, *, device: str, dtype: str, memory_bytes: int = 0, handlers: AbstractSet[str] = frozenset()
) -> Registry:
    """Verify and load every model folder below `folder`, once every one of them was surveyed.

    Args:
        folder: each of its folders holds one model; one without a manifest is refused, not skipped. Hidden ones are
            skipped: they are drafts that become a model by getting its name.
        device: MRGC_DEVICE.
        dtype: MRGC_DTYPE.
        memory_bytes: MRGC_MODEL_MEMORY_BYTES; 0 is half of the device's memory.
        handlers: MRGC_MODEL_HANDLERS, the models of one's own that may be imported.

    Raises:
        ConfigError: a folder is not exactly what its manifest says, there is none, or they do not fit the memory.
    """
    target = open_device(device)
    number_type = choose_dtype(dtype, native_bf16=has_native_bf16(target))
    surveyed = []
    for entry in _entries(folder):
        with naming(entry.name):
            surveyed.append(survey(entry))
    budget.ensure_fits(
        {each.manifest.name: _need_bytes(each, number_type.itemsize) for each in surveyed},
        budget_bytes=budget.resolve(memory_bytes, device_bytes=total_bytes(target)),
    )
    return Registry(_load_one(each, device=target, dtype=number_type, handlers=handlers) for each in surveyed)


def _entries(folder: Path) -> list[Path]:
    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise ConfigError("MRGC_MODELS cannot be read") from error
    for entry in entries:
        if not (entry / MANIFEST).exists():
            raise ConfigError(f"model folder {entry.name}: it has no {MANIFEST}")
    return entries


def _need_bytes(folder: ModelFolder, item_bytes: int) -> int:
    beside = KV_CACHE_BYTES if folder.manifest.task == GENERATE else 0
    return folder.weights_bytes(item_bytes) + beside


def _load_one(folder: ModelFolder, *, device: torch.device, dtype: torch.dtype, handlers: AbstractSet[str]) -> Model:
    own = folder.manifest.handler
    encoder = CudaEmbedder if device.type == "cuda" else TextEmbedder
    with naming(folder.manifest.name):
        handler = find_handler(own, allowed=handlers) if own else _TASKS.get(folder.manifest.task, encoder)
        model = handler(folder, device=device, dtype=dtype)
        ensure_model(model, folder)
        folder.verify()
    return model
