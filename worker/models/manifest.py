"""Manifest of a model folder: which files, which hashes, what the model promises.

The digest that goes into every result header is the SHA-256 of the manifest's bytes, so it fixes the weights, the
tokeniser and the configuration at once.

May import: the standard library, mrgc.errors, mrgc.wire. Called by worker.models.folder and by the modules that write
model folders.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mrgc.errors import ConfigError, FormatError
from mrgc.wire import strict_json
from mrgc.wire.headers import MODEL
from worker.models import data_formats

if TYPE_CHECKING:
    from collections.abc import Mapping

MANIFEST: Final = "manifest.json"
WEIGHTS: Final = "model.safetensors"
CONFIG: Final = "config.json"
TOKENIZER: Final = "tokenizer.json"
REQUIRED_FILES: Final = frozenset({WEIGHTS, CONFIG, TOKENIZER})

MAX_MANIFEST_BYTES: Final = 65_536
MAX_TOKENS: Final = 8_192
MAX_DIMENSIONS: Final = 16_384
MAX_FILES: Final = 256
MAX_LABELS: Final = 1_024
MAX_LABEL_CHARS: Final = 256

EMBED: Final = "embed"
CLASSIFY: Final = "classify"
CLASSIFY_TOKENS: Final = "classify-tokens"
GENERATE: Final = "generate"
#: How the hidden states of an input's tokens become its row, by task, the usual one first; a head that answers every
#: token pools none.
POOLINGS: Final = {EMBED: ("mean", "cls"), CLASSIFY: ("cls",), CLASSIFY_TOKENS: ("none",), GENERATE: ("none",)}

#: Keys that a manifest has only where they say something, and their types in the file.
_OPTIONAL: Final = {"labels": list, "handler": str}
_WORD: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_HASH: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a folder's manifest.json says, checked for form; the files are checked when they are read.

    Raises:
        ConfigError: a value is outside what this version serves.
    """

    name: str
    version: str
    task: str
    licence: str
    max_tokens: int
    dimensions: int
    pooling: str
    normalize: bool
    #: Type of the stored weights.
    dtype: str
    #: SHA-256 of each file by name, hex.
    files: Mapping[str, str]
    #: Names of the numbers in a row of scores, in order; none for a model that embeds. Left out of the file then.
    labels: tuple[str, ...] = ()
    #: Who makes a model of the folder, where that is none of ours (worker.models.handlers). Left out of the file then.
    handler: str = ""

    def __post_init__(self) -> None:
        """Fail closed on every value that this version does not know."""
        _ensure("@" not in self.name and "/" not in self.name and MODEL.fullmatch(self.name), "name")
        self._ensure_files()
        self._ensure_labels()
        if self.handler:
            self._ensure_own()
            return
        _ensure(self.task in POOLINGS, "task")
        _ensure(1 <= self.max_tokens <= MAX_TOKENS, "max_tokens")
        _ensure(0 <= self.dimensions <= MAX_DIMENSIONS, "dimensions")
        _ensure((self.dimensions == 0) == (self.task == GENERATE), "dimensions")
        _ensure(self.pooling in POOLINGS[self.task], "pooling")
        _ensure(self.normalize == (self.task == EMBED), "normalize")
        _ensure(len(self.labels) == (self.dimensions if self.task in (CLASSIFY, CLASSIFY_TOKENS) else 0), "labels")
        _ensure(self.dtype in ("float32", "float16", "bfloat16"), "dtype")
        _ensure(self.files.keys() >= ({CONFIG} if self.task == GENERATE else REQUIRED_FILES), "files")

    def _ensure_own(self) -> None:
        """Check what holds for any model; what else its values mean is its handler's affair."""
        _ensure(_WORD.fullmatch(self.handler), "handler")
        _ensure(_WORD.fullmatch(self.task), "task")
        _ensure(1 <= self.max_tokens <= MAX_TOKENS, "max_tokens")
        _ensure(0 <= self.dimensions <= MAX_DIMENSIONS, "dimensions")
        _ensure(_WORD.fullmatch(self.pooling), "pooling")
        _ensure(_WORD.fullmatch(self.dtype), "dtype")

    def _ensure_files(self) -> None:
        _ensure(1 <= len(self.files) <= MAX_FILES, "files")
        for name, digest in self.files.items():
            data_formats.ensure_name(name)
            _ensure(type(digest) is str and _HASH.fullmatch(digest), "files")

    def _ensure_labels(self) -> None:
        _ensure(len(set(self.labels)) == len(self.labels) <= MAX_LABELS, "labels")
        for label in self.labels:
            # Written into every result: text that has a UTF-8 form.
            _ensure(type(label) is str and 1 <= len(label) <= MAX_LABEL_CHARS and label.isprintable(), "labels")

    def to_bytes(self) -> bytes:
        """Return the one text of this manifest; its SHA-256 is the model's digest."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        fields = {name: value for name, value in fields.items() if value or name not in _OPTIONAL}
        return json.dumps(fields, indent=1, sort_keys=True).encode() + b"\n"


def parse_manifest(data: bytes) -> Manifest:
    """Parse the bytes of a manifest.json.

    Raises:
        ConfigError: not strict JSON, a key is missing, unknown or mistyped, or a value is not served.
    """
    try:
        fields = strict_json.parse(data, max_values=1_024 + MAX_LABELS)
    except FormatError as error:
        raise ConfigError(f"{MANIFEST} is not strict json") from error
    types = {"name": str, "version": str, "task": str, "licence": str, "max_tokens": int, "dimensions": int}
    types |= {"pooling": str, "normalize": bool, "dtype": str, "files": dict}
    types |= _OPTIONAL
    _ensure(type(fields) is dict and fields.keys() | _OPTIONAL.keys() == types.keys(), "keys")
    for key, value in fields.items():
        _ensure(type(value) is types[key] and (value or key not in _OPTIONAL), key)
    labels = fields.pop("labels", [])
    _ensure(all(type(label) is str for label in labels), "labels")
    return Manifest(**fields, labels=tuple(labels))


def _ensure(holds: Any, what: str) -> None:
    if not holds:
        raise ConfigError(f"manifest breaks the rule of its {what}")
