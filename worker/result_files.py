"""Result objects in a directory: whole or absent, created once, on the disk before anybody hears of them.

An object is written and flushed under a temporary name, then linked to its own, which fails if there is one already.
So whoever finds an object finds all of its bytes, after a loss of power too. Many are flushed side by side, because a
file system commits together what waits together.

May import: the standard library, mrgc.wire. Called by worker.object_store, in a thread.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, NamedTuple

from mrgc.wire.strict_cbor import Buffer

#: Files that are flushed at the same time.
WRITERS: Final = 16
_NEW: Final = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC


class NewFile(NamedTuple):
    """What to create: the file of an object, and its bytes."""

    path: str
    body: Buffer


class ResultFiles:
    """Creates files; threads may share one."""

    def __init__(self) -> None:
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="files")

    def create(self, files: Sequence[NewFile]) -> list[OSError | None]:
        """Create files that do not exist; what exists stays as it is. Blocks.

        Returns:
            For each file, in order: None when one of that name is safely on the disk, or why that is not certain.
        """
        shares = [files[start::WRITERS] for start in range(min(WRITERS, len(files)))]
        outcomes: list[OSError | None] = [None] * len(files)
        for start, share in enumerate(self._writers.map(_create_share, shares)):
            outcomes[start::WRITERS] = share
        try:
            for directory in _shared_directories(files):
                _flush(directory)
        except OSError as error:
            return [error] * len(files)
        return outcomes


class _Creation:
    """One file on its way. The steps are taken in the order of the methods, and none after one that failed."""

    def __init__(self, file: NewFile) -> None:
        self.error: OSError | None = None
        self._path, self._body = file
        self._directory = os.path.dirname(self._path)
        self._temporary = f"{self._directory}/.{secrets.token_hex(8)}"
        self._descriptor = -1

    def take(self, step: Callable[[_Creation], None]) -> None:
        if self.error is None:
            try:
                step(self)
            except OSError as error:
                self.error = error

    def write(self) -> None:
        try:
            os.mkdir(self._directory)
        except FileExistsError:
            pass
        except FileNotFoundError:
            os.makedirs(self._directory, exist_ok=True)
        self._descriptor = os.open(self._temporary, _NEW, 0o644)
        left = memoryview(self._body)
        while left:
            left = left[os.write(self._descriptor, left) :]

    def flush(self) -> None:
        os.fsync(self._descriptor)

    def name(self) -> None:
        with suppress(FileExistsError):
            os.link(self._temporary, self._path)

    def clean_up(self) -> None:
        """Drop what is not needed any more; always taken."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            with suppress(OSError):
                os.unlink(self._temporary)

    def flush_directory(self) -> None:
        _flush(self._directory)


def _create_share(files: Sequence[NewFile]) -> list[OSError | None]:
    """Take each step for all files before the next one, so that a flush finds the bytes of all on their way."""
    creations = [_Creation(file) for file in files]
    for step in (_Creation.write, _Creation.flush, _Creation.name):
        for creation in creations:
            creation.take(step)
    for creation in creations:
        creation.clean_up()
        creation.take(_Creation.flush_directory)
    return [creation.error for creation in creations]


def _shared_directories(files: Sequence[NewFile]) -> set[str]:
    """Return what lies above the files' own directories (docs/spec.md §4): those of the tenants, and of all of them."""
    tenants = {os.path.dirname(os.path.dirname(file.path)) for file in files}
    return tenants | {os.path.dirname(tenant) for tenant in tenants}


def _flush(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
