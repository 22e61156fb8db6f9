"""What the models of one engine may take of its device's memory: arithmetic alone, done before any weight is read.

Called by worker.models.registry. May import: the standard library, mrgc.errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mrgc.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Share of the device's memory that weights may take where MRGC_MODEL_MEMORY_BYTES says nothing. The other half is for
#: the forward pass and, on a CPU, for a file while it is being loaded.
DEFAULT_SHARE: Final = 0.5
#: Models that an error lists, the largest first.
_LISTED: Final = 8


def resolve(setting_bytes: int, *, device_bytes: int) -> int:
    """Return the budget in bytes; a setting of 0 is DEFAULT_SHARE of the device."""
    return setting_bytes or int(device_bytes * DEFAULT_SHARE)


def ensure_fits(needs_bytes: Mapping[str, int], *, budget_bytes: int) -> None:
    """Compare what models need with the budget.

    Args:
        needs_bytes: of each model by name, what its weights take in the type that it computes in.
        budget_bytes: for all of them.

    Raises:
        ConfigError: they do not fit; says by how much, and what each of the largest needs.
    """
    total_bytes = sum(needs_bytes.values())
    if total_bytes <= budget_bytes:
        return
    ranked = sorted(needs_bytes.items(), key=lambda need: (-need[1], need[0]))
    listed = ", ".join(f"{name} {need_bytes}" for name, need_bytes in ranked[:_LISTED])
    rest = f" and {len(ranked) - _LISTED} smaller ones" if len(ranked) > _LISTED else ""
    raise ConfigError(
        f"models need {total_bytes} bytes of memory, {total_bytes - budget_bytes} more than the {budget_bytes} of "
        f"MRGC_MODEL_MEMORY_BYTES: {listed}{rest}"
    )
