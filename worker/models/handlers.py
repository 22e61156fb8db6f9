"""Models of one's own: classes that installed packages offer and the operator admits.

A package offers a handler by an entry point of the group `mrgc.models`; a manifest names it; the setting
MRGC_MODEL_HANDLERS admits it. Nothing of a package is imported before all three agree, because a handler runs with an
engine's plaintext before it.

Called by worker.models.registry. May import: the standard library, mrgc.errors, worker.models.
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Final, Protocol, cast

from mrgc.errors import ConfigError
from worker.models.base import Model

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    import torch

    from worker.models.folder import ModelFolder

GROUP: Final = "mrgc.models"
#: What the engine uses of a model.
_MEMBERS: Final = tuple(name for name in vars(Model) if not name.startswith("_"))


class Handler(Protocol):
    """A class or function that makes a model of a folder."""

    def __call__(self, folder: ModelFolder, *, device: torch.device, dtype: torch.dtype) -> Model:
        """Load and warm a model.

        Args:
            folder: surveyed; `read` gives bytes whose hashes were compared.
            device: MRGC_DEVICE.
            dtype: what the model should compute in, from MRGC_DTYPE.

        Raises:
            ConfigError: the files contradict each other, or are not what this handler serves.
        """


def find(name: str, *, allowed: AbstractSet[str]) -> Handler:
    """Import the handler of a name.

    Args:
        name: as the manifest has it.
        allowed: MRGC_MODEL_HANDLERS.

    Raises:
        ConfigError: it is not allowed, not installed, installed twice, or cannot be imported.
    """
    if name not in allowed:
        raise ConfigError(f"its handler {name} is not named in MRGC_MODEL_HANDLERS")
    offers = metadata.entry_points(group=GROUP, name=name)
    if not offers:
        raise ConfigError(f"no installed package offers its handler {name} as an entry point of {GROUP}")
    if len(offers) > 1:
        raise ConfigError(f"{len(offers)} installed packages offer a handler {name}: uninstall all but one")
    (offer,) = offers
    try:
        found = offer.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"its handler {name} cannot be imported from {offer.value}") from error
    return cast("Handler", found)


def ensure_model(model: Model, folder: ModelFolder) -> None:
    """Raise ConfigError unless what a handler made is a model, and answers as the one of this folder."""
    if missing := [member for member in _MEMBERS if not hasattr(model, member)]:
        raise ConfigError(f"its handler made something that is no model: it has no {', '.join(missing)}")
    if (model.name, model.digest) != (folder.manifest.name, folder.digest):
        raise ConfigError("its handler made a model of another name or digest than the folder's")
