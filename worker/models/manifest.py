"""Manifest of a model folder: which files, which hashes, what the model promises.

A folder holds `manifest.json` and exactly the files it names. The digest that goes into every result header is the
SHA-256 of the manifest's bytes, so it fixes the weights, the tokeniser and the configuration at once.
Nothing in a folder is ever executed: only data formats are accepted, by suffix and by first bytes.

May import: the standard library, mrgc.errors, mrgc.wire, mrgc.wire. Called by worker.models.registry and
by the modules that write model folders.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mrgc.errors import ConfigError, FormatError
from mrgc.wire import strict_json
from mrgc.wire.headers import MODEL

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MANIFEST: Final = "manifest.json"
WEIGHTS: Final = "model.safetensors"
CONFIG: Final = "config.json"
TOKENIZER: Final = "tokenizer.json"
REQUIRED_FILES: Final = frozenset({WEIGHTS, CONFIG, TOKENIZER})

MAX_MANIFEST_BYTES: Final = 65_536
MAX_FILE_BYTES: Final = 64 << 30  #: Largest weights that a host of today would hold in memory twice.
MAX_TOKENS: Final = 8_192
MAX_DIMENSIONS: Final = 16_384

#: A plain file name: no folder, nothing hidden.
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_DATA_SUFFIXES: Final = frozenset({".safetensors", ".json", ".txt"})
#: Zip archives (torch.save, TorchScript, .pt2) and pickles of protocol 2 and later.
_PROGRAM_MAGICS: Final = (b"PK\x03\x04", b"PK\x05\x06", *(bytes([0x80, protocol]) for protocol in range(2, 8)))


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

    def __post_init__(self) -> None:
        """Fail closed on every value that this version does not know."""
        _ensure("@" not in self.name and "/" not in self.name and MODEL.fullmatch(self.name), "name")
        _ensure(self.task == "embed", "task")
        _ensure(1 <= self.max_tokens <= MAX_TOKENS, "max_tokens")
        _ensure(1 <= self.dimensions <= MAX_DIMENSIONS, "dimensions")
        _ensure(self.pooling == "mean", "pooling")
        _ensure(self.normalize, "normalize")
        _ensure(self.dtype in ("float32", "float16", "bfloat16"), "dtype")
        _ensure(self.files.keys() >= REQUIRED_FILES, "files")
        for name, digest in self.files.items():
            _ensure(_FILE_NAME.fullmatch(name) and type(digest) is str and _HASH.fullmatch(digest), "files")

    def to_bytes(self) -> bytes:
        """Return the one text of this manifest; its SHA-256 is the model's digest."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return json.dumps(fields, indent=1, sort_keys=True).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A verified folder: its manifest, its digest, and the bytes whose hashes were compared."""

    manifest: Manifest
    #: SHA-256 of manifest.json, hex.
    digest: str
    contents: Mapping[str, bytes]


def parse_manifest(data: bytes) -> Manifest:
    """Parse the bytes of a manifest.json.

    Raises:
        ConfigError: not strict JSON, a key is missing, unknown or mistyped, or a value is not served.
    """
    try:
        fields = strict_json.parse(data, max_values=1_024)
    except FormatError as error:
        raise ConfigError(f"{MANIFEST} is not strict json") from error
    types = {"name": str, "version": str, "task": str, "licence": str, "max_tokens": int, "dimensions": int}
    types |= {"pooling": str, "normalize": bool, "dtype": str, "files": dict}
    _ensure(type(fields) is dict and fields.keys() == types.keys(), "keys")
    for key, kind in types.items():
        _ensure(type(fields[key]) is kind, key)
    return Manifest(**fields)


def read_folder(folder: Path) -> ModelFiles:
    """Read a model folder into memory and compare every hash with the manifest.

    What is used later is what was hashed: the files are not opened a second time.

    Raises:
        ConfigError: the folder is not exactly what its manifest says.
    """
    try:
        text = _read_capped(folder / MANIFEST, MAX_MANIFEST_BYTES)
        manifest = parse_manifest(text)
        _ensure(manifest.name == folder.name, "name, which differs from the folder's")
        present = {entry.name for entry in folder.iterdir()} - {MANIFEST}
        for name in sorted(present | manifest.files.keys()):
            ensure_data_suffix(name)
        _ensure(present == manifest.files.keys(), "files, which differ from the folder's")
        contents = {name: _read_verified(folder / name, digest) for name, digest in manifest.files.items()}
    except OSError as error:
        raise ConfigError(f"model folder {folder.name} cannot be read") from error
    return ModelFiles(manifest, hashlib.sha256(text).hexdigest(), contents)


def ensure_data_suffix(name: str) -> None:
    """Raise ConfigError unless the suffix names a data format."""
    if not any(name.endswith(suffix) for suffix in _DATA_SUFFIXES):
        raise ConfigError(f"{name} is not a data format that a model folder may hold")


def ensure_data(name: str, content: bytes) -> None:
    """Raise ConfigError if the first bytes are those of a pickle or an archive: both hold programs."""
    if content.startswith(_PROGRAM_MAGICS):
        raise ConfigError(f"{name} is a pickle or an archive")


def _read_verified(path: Path, digest: str) -> bytes:
    content = _read_capped(path, MAX_FILE_BYTES)
    ensure_data(path.name, content)
    if hashlib.sha256(content).hexdigest() != digest:
        raise ConfigError(f"{path.name} differs from its manifest's hash")
    return content


def _read_capped(path: Path, max_bytes: int) -> bytes:
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes > max_bytes:
            raise ConfigError(f"{path.name} is over its size limit")
        return file.read(size_bytes)


def _ensure(holds: Any, what: str) -> None:
    if not holds:
        raise ConfigError(f"manifest breaks the rule of its {what}")
