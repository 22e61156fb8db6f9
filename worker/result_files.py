"""Result objects in a directory: whole or absent, created once, on the disk before anybody hears of them.

An object is written under a temporary name. Once its bytes are on the disk it is linked to its own, which fails if
there is one already. So whoever finds an object finds all of its bytes, after a loss of power too. What came together
goes to the disk together: two syncfs(2) for all files of a batch, where fsync would be called twice for each. They also
wait for what others write to that file system, so docs/operations.md wants one for the results.

May import: the standard library, mrgc.wire. Called by worker.object_store, in a thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from mrgc.wire.strict_cbor import Buffer

#: syncfs(2), VERSIONS: before it, a failed write was not reported.
LEAST_LINUX: Final = (5, 8)
_NEW: Final = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC


class NewFile(NamedTuple):
    """What to create: the file of an object, and its bytes."""

    path: str
    body: Buffer


class ResultFiles:
    """Creates files; threads may share one."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        major, minor = re.findall("[0-9]+", os.uname().release)[:2]
        self._is_supported = (int(major), int(minor)) >= LEAST_LINUX

    def create(self, files: Sequence[NewFile]) -> list[OSError | None]:
        """Create files that do not exist; what exists stays as it is. Blocks.

        Returns:
            For each file, in order: None when one of that name is safely on the disk, or why that is not certain.
        """
        if not self._is_supported:
            return [OSError(errno.ENOSYS, "results in a directory need Linux 5.8") for _ in files]
        batch = secrets.token_hex(8)
        creations = [_Creation(file, f".{batch}{number}") for number, file in enumerate(files)]
        try:
            for step in (_Creation.write, _Creation.name):
                for creation in creations:
                    creation.take(step)
                self._flush(creations)
        finally:
            for creation in creations:
                creation.clean_up()
        return [creation.error for creation in creations]

    def _flush(self, creations: Sequence[_Creation]) -> None:
        """Wait until the disks have everything; an error concerns every file on its disk."""
        disks: dict[int, list[_Creation]] = {}
        for creation in creations:
            if creation.error is None:
                disks.setdefault(creation.device, []).append(creation)
        for on_disk in disks.values():
            # The first to be opened: a descriptor reports the errors since it was opened.
            if self._libc.syncfs(on_disk[0].descriptor):
                number = ctypes.get_errno()
                for creation in on_disk:
                    creation.error = OSError(number, os.strerror(number))


class _Creation:
    """One file on its way. The steps are taken in the order of the methods, and none after one that failed."""

    def __init__(self, file: NewFile, temporary: str) -> None:
        self.error: OSError | None = None
        self.descriptor = -1
        #: Of the file system.
        self.device = 0
        self._path, self._body = file
        self._directory = os.path.dirname(self._path)
        self._temporary = f"{self._directory}/{temporary}"

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
        self.descriptor = os.open(self._temporary, _NEW, 0o644)
        self.device = os.fstat(self.descriptor).st_dev
        left = memoryview(self._body)
        while left:
            left = left[os.write(self.descriptor, left) :]

    def name(self) -> None:
        with suppress(FileExistsError):
            os.link(self._temporary, self._path)

    def clean_up(self) -> None:
        """Drop what is not needed any more; always taken."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            with suppress(OSError):
                os.unlink(self._temporary)
