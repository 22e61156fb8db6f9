"""What a tenant asks of a job beside its texts, and the payload that is sealed (docs/spec.md §3).

Called by `mrgc.client` and `mrgc.inputs`. May import: the standard library, mrgc.errors, mrgc.wire.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mrgc.errors import ConfigError, FormatError
from mrgc.wire.headers import JSON_TYPE, MAX_LIFETIME_S, MODEL, SAFETENSORS_TYPE

DEFAULT_LIFETIME_S: Final = 86_400  #: One day.
ACCEPTED_TYPES: Final = (JSON_TYPE, SAFETENSORS_TYPE)


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What every job of one submission shares.

    Args:
        model: name, or name@sha256:digest to pin the manifest.
        lifetime_s: `expires` minus `created`.
        floor: lowest trust tier at which plaintext may be released.
        truncate: cut over-long texts instead of giving each an error of its own.
        accept: content type of the result's body.

    Raises:
        ConfigError: a value breaks docs/spec.md §2 or §3.
    """

    model: str
    lifetime_s: int = DEFAULT_LIFETIME_S
    floor: int = 0
    truncate: bool = False
    accept: str = JSON_TYPE

    def __post_init__(self) -> None:
        """Hold every value to the specification before anything is sealed."""
        _ensure(MODEL.fullmatch(self.model) is not None, "no model is named, or its name is malformed (MRGC_MODEL)")
        _ensure(1 <= self.lifetime_s <= MAX_LIFETIME_S, f"a job lives 1..{MAX_LIFETIME_S} seconds")
        _ensure(0 <= self.floor <= 3, "a trust floor is 0, 1, 2 or 3")
        _ensure(self.accept in ACCEPTED_TYPES, f"a result's type is {' or '.join(ACCEPTED_TYPES)}")


def encode_payload(texts: Sequence[str], options: JobOptions) -> bytes:
    """Build the JSON payload of one job; defaults are left out.

    Raises:
        FormatError: a text holds a lone surrogate, which has no UTF-8 form.
    """
    parameters: dict[str, bool | str] = {}
    if options.truncate:
        parameters["truncate"] = True
    if options.accept != JSON_TYPE:
        parameters["accept"] = options.accept
    payload: dict[str, object] = {"inputs": list(texts)}
    if parameters:
        payload["parameters"] = parameters
    try:
        return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise FormatError("text holds a lone surrogate, which is not unicode text") from None


def _ensure(holds: bool, text: str) -> None:
    if not holds:
        raise ConfigError(text)
