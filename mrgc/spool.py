"""Sealed jobs between validation and sending: a whole file is judged before the first job is sent.

Only sealed bytes come here. The first 16 MiB stay in memory, then all goes to a file without a name in the state
folder, which ends with the process. So `mrgc submit` needs, for a file of any length, the spool's 16 MiB, a few copies
of the job at hand (a job is at most 33.5 MB), and disk space for the sealed jobs.

Called by `mrgc.cli`. May import: the standard library, mrgc.errors.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, Self

from mrgc.errors import ConfigError

MEMORY_BYTES: Final = 16 << 20
_ENTRY: Final = struct.Struct(">IQQ")  #: sealed bytes, first line, last line


class SpooledJob(NamedTuple):
    """A sealed job and the lines, counted from 1, that it was made of."""

    sealed: bytes
    first_line: int
    last_line: int


class SealedSpool:
    """A first-in, first-out file of sealed jobs: filled once, then read once.

    Args:
        folder: where the overflow goes; made 0700 if absent.

    Raises:
        ConfigError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._jobs = 0
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from error
        self._file = tempfile.SpooledTemporaryFile(MEMORY_BYTES, "w+b", dir=str(folder))  # noqa: SIM115 - close() closes it

    def __len__(self) -> int:
        return self._jobs

    def add(self, job: SpooledJob) -> None:
        """Append a job.

        Raises:
            ConfigError: the disk is full, or the folder cannot be written.
        """
        try:
            self._file.write(_ENTRY.pack(len(job.sealed), job.first_line, job.last_line))
            self._file.write(job.sealed)
        except OSError as error:
            raise self._unusable(error) from error
        self._jobs += 1

    def __iter__(self) -> Iterator[SpooledJob]:
        self._file.seek(0)
        for _ in range(self._jobs):
            sealed_bytes, first_line, last_line = _ENTRY.unpack(self._file.read(_ENTRY.size))
            yield SpooledJob(self._file.read(sealed_bytes), first_line, last_line)

    def close(self) -> None:
        """Drop the jobs."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(f"cannot spool sealed jobs in {self._folder} (MRGC_STATE): {error.strerror}")
