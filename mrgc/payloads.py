"""What a tenant asks of a job beside its inputs, and the payload that is sealed (docs/spec.md §3).

Called by `mrgc.client` and `mrgc.inputs`. May import: the standard library, mrgc.errors, mrgc.wire.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from mrgc.errors import ConfigError, FormatError
from mrgc.wire import strict_cbor
from mrgc.wire.headers import CBOR_TYPE, JSON_TYPE, MAX_LIFETIME_S, MODEL, SAFETENSORS_TYPE

DEFAULT_LIFETIME_S: Final = 86_400  #: One day.
ACCEPTED_TYPES: Final = (JSON_TYPE, SAFETENSORS_TYPE)
MIN_LABELS, MAX_LABELS = 2, 64
_U16_END: Final = 1 << 16
_U32_END: Final = 1 << 32

#: A text, or the ids of its tokens as the model's own tokeniser gives them, special tokens included.
Input = str | Sequence[int]


class Payload(NamedTuple):
    """What is sealed, and the `type` that the job's header declares."""

    type: str
    body: bytes

    def __repr__(self) -> str:
        return f"Payload(type={self.type}, {len(self.body)} bytes)"


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What every job of one submission shares.

    Args:
        model: name, or name@sha256:digest to pin the manifest.
        lifetime_s: `expires` minus `created`.
        floor: lowest trust tier at which plaintext may be released.
        truncate: cut over-long texts instead of giving each an error of its own.
        accept: content type of the result's body.
        labels: of a model that embeds: answer with scores of these texts, 2 to 64 different ones.

    Raises:
        ConfigError: a value breaks docs/spec.md §2 or §3.
    """

    model: str
    lifetime_s: int = DEFAULT_LIFETIME_S
    floor: int = 0
    truncate: bool = False
    accept: str = JSON_TYPE
    labels: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Hold every value to the specification before anything is sealed."""
        _ensure(MODEL.fullmatch(self.model) is not None, "no model is named, or its name is malformed (MRGC_MODEL)")
        _ensure(1 <= self.lifetime_s <= MAX_LIFETIME_S, f"a job lives 1..{MAX_LIFETIME_S} seconds")
        _ensure(0 <= self.floor <= 3, "a trust floor is 0, 1, 2 or 3")
        _ensure(not self.labels or MIN_LABELS <= len(set(self.labels)) <= MAX_LABELS, "labels are 2 to 64 texts")
        _ensure(len(set(self.labels)) == len(self.labels), "labels differ from one another")
        _ensure(_is_unicode("".join(self.labels)), "labels are unicode text")
        _ensure(self.accept in ACCEPTED_TYPES, f"a result's type is {' or '.join(ACCEPTED_TYPES)}")


def encode_payload(inputs: Sequence[Input], options: JobOptions) -> Payload:
    """Build the payload of one job, JSON of texts or CBOR of token ids; defaults are left out.

    Raises:
        FormatError: a text holds a lone surrogate, which has no UTF-8 form; an id is none; texts and ids are mixed.
    """
    parameters: dict[str, object] = {}
    if options.truncate:
        parameters["truncate"] = True
    if options.accept != JSON_TYPE:
        parameters["accept"] = options.accept
    if options.labels:
        parameters["labels"] = list(options.labels)
    are_texts = {isinstance(value, str) for value in inputs}
    if are_texts == {True, False}:
        raise FormatError("a job holds texts or token ids, not both")
    try:
        if are_texts == {False}:
            return _of_ids([value for value in inputs if not isinstance(value, str)], parameters)
        payload: dict[str, object] = {"inputs": list(inputs)}
        if parameters:
            payload["parameters"] = parameters
        return Payload(JSON_TYPE, json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode())
    except UnicodeEncodeError:
        raise FormatError("text holds a lone surrogate, which is not unicode text") from None


def _of_ids(inputs: Sequence[Sequence[int]], parameters: dict[str, object]) -> Payload:
    end = max((max(ids, default=0) for ids in inputs), default=0) + 1
    if not all(min(ids, default=0) >= 0 for ids in inputs) or end > _U32_END:
        raise FormatError(f"a token id is none of 0..{_U32_END - 1}")
    kind, code = ("u16", "H") if end <= _U16_END else ("u32", "I")
    # The service takes little-endian ids on every machine.
    packed = [struct.pack(f"<{len(ids)}{code}", *ids) for ids in inputs]
    return Payload(CBOR_TYPE, strict_cbor.encode({"inputs": packed, "parameters": parameters | {"ids": kind}}))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _ensure(holds: bool, text: str) -> None:
    if not holds:
        raise ConfigError(text)
