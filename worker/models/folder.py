"""A model folder on disk: surveyed before anything of it is held, and read only as what its manifest says.

A folder holds `manifest.json` and exactly the regular files that it names. Bytes leave it through `read`, which
compares their hash, so what is used is what was hashed. Nothing in a folder is ever executed.

May import: the standard library, mrgc.errors, worker.models. Called by worker.models.registry, by models, and by the
modules that write model folders.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Final

from mrgc.errors import ConfigError
from worker.models import data_formats
from worker.models.manifest import MANIFEST, MAX_MANIFEST_BYTES, parse_manifest
from worker.models.safetensors_header import ITEM_BYTES, read_header

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from io import BufferedReader
    from pathlib import Path

    from worker.models.manifest import Manifest
    from worker.models.safetensors_header import TensorEntry

#: Types that a model converts to the one it computes in; others stay as they are stored.
_CONVERTED: Final = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder whose manifest, names, sizes and tensor headers were checked; of its other bytes none is in memory."""

    path: Path
    manifest: Manifest
    #: SHA-256 of manifest.json, hex.
    digest: str
    #: Length of each file that the manifest names.
    sizes: Mapping[str, int]
    #: What each .safetensors file says that it holds.
    tensors: Mapping[str, tuple[TensorEntry, ...]]
    #: Files whose hash was compared.
    _verified: set[str] = field(default_factory=set, repr=False)

    def read(self, name: str) -> bytes:
        """Read one file that the manifest names.

        Raises:
            ConfigError: it has changed since the survey, its hash is another, or it is not of its format.
        """
        with _opened_folder(self.path) as folder, _opened_file(folder, name) as (file, size_bytes):
            content = file.read(size_bytes)
        if hashlib.sha256(content).hexdigest() != self.manifest.files[name]:
            raise ConfigError(f"{name} differs from its manifest's hash")
        if not data_formats.is_weights(name):
            data_formats.ensure_content(name, content)
        elif read_header(BytesIO(content), file_bytes=len(content), name=name) != self.tensors[name]:
            raise ConfigError(f"{name} has changed since its folder was surveyed")
        self._verified.add(name)
        return content

    def verify(self) -> None:
        """Compare every file that was not read yet with the manifest, weights without holding them.

        A model that lets a library open the folder by its path calls this first.

        Raises:
            ConfigError: as `read`.
        """
        for name in sorted(self.manifest.files.keys() - self._verified):
            if data_formats.is_weights(name):
                with _opened_folder(self.path) as folder, _opened_file(folder, name) as (file, _):
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != self.manifest.files[name]:
                    raise ConfigError(f"{name} differs from its manifest's hash")
                self._verified.add(name)
            else:
                self.read(name)

    def weights_bytes(self, item_bytes: int) -> int:
        """Return what all tensors take once the floating-point ones have elements of `item_bytes`."""
        return sum(
            entry.elements * (item_bytes if entry.dtype in _CONVERTED else ITEM_BYTES[entry.dtype])
            for entries in self.tensors.values()
            for entry in entries
        )


def survey(path: Path) -> ModelFolder:
    """Check everything about a folder that can be known without reading its files.

    Raises:
        ConfigError: the folder is not what its manifest says, or holds what no model folder may.
    """
    with _opened_folder(path) as folder:
        with _opened_file(folder, MANIFEST, max_bytes=MAX_MANIFEST_BYTES) as (file, size_bytes):
            text = file.read(size_bytes)
        manifest = parse_manifest(text)
        if manifest.name != path.name:
            raise ConfigError(f"manifest breaks the rule of its name, which differs from the folder's, {path.name}")
        present = set(os.listdir(folder))  # noqa: PTH208  of the folder that was opened, whatever the path is by now
        _ensure_names(present - {MANIFEST}, manifest.files)
        sizes: dict[str, int] = {}
        tensors: dict[str, tuple[TensorEntry, ...]] = {}
        for name in sorted(manifest.files):
            with _opened_file(folder, name) as (file, size_bytes):
                sizes[name] = size_bytes
                data_formats.ensure_head(name, file.read(data_formats.HEAD_BYTES))
                if data_formats.is_weights(name):
                    file.seek(0)
                    tensors[name] = read_header(file, file_bytes=size_bytes, name=name)
    return ModelFolder(path, manifest, hashlib.sha256(text).hexdigest(), sizes, tensors)


@contextmanager
def naming(folder: str) -> Iterator[None]:
    """Say of which model folder a ConfigError speaks: what is wrong is known deeper down, whose it is up here."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"model folder {folder}: {error}") from error


def _ensure_names(present: set[str], files: Mapping[str, str]) -> None:
    for name in sorted(present | files.keys()):
        data_formats.ensure_name(name)
    if unlisted := sorted(present - files.keys()):
        raise ConfigError(f"manifest breaks the rule of its files: it does not name {unlisted[0]}, which is there")
    if missing := sorted(files.keys() - present):
        raise ConfigError(f"manifest breaks the rule of its files: it names {missing[0]}, which is not there")


@contextmanager
def _opened_folder(path: Path) -> Iterator[int]:
    """Open a folder by its own name and nothing behind a link; foreign errors end here."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield folder
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise ConfigError("it is, or holds, a symbolic link, or it is no folder") from error
        raise ConfigError(f"it cannot be read: {os.strerror(error.errno or 0)}") from error


@contextmanager
def _opened_file(folder: int, name: str, *, max_bytes: int | None = None) -> Iterator[tuple[BufferedReader, int]]:
    """Open a regular file of an opened folder; yield it with its size, which is within its cap."""
    # Without O_NONBLOCK a named pipe in the folder would keep the engine from ever starting.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=folder)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{name} is not a regular file")
        if max_bytes is None:
            data_formats.ensure_size(name, status.st_size)
        elif status.st_size > max_bytes:
            raise ConfigError(f"{name} is over its size limit: {status.st_size} bytes, at most {max_bytes}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file, status.st_size
    finally:
        os.close(descriptor)
