"""The files and streams that commands read and write.

Called by `mrgc.cli`. May import: the standard library, mrgc.errors, mrgc.results.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from mrgc.errors import ConfigError, InputFileError

JOB_ID: Final = re.compile(r"[0-9a-f]{32}")


@contextmanager
def open_input(file: str) -> Iterator[BinaryIO]:
    """Open a tenant's file for bytes; `-` is standard input.

    Raises:
        InputFileError: it cannot be opened or read.
    """
    try:
        if file == "-":
            yield sys.stdin.buffer
        else:
            with Path(file).open("rb") as stream:
                yield stream
    except OSError as error:
        raise InputFileError(f"{file}: {error.strerror}") from error


def read_arguments(arguments: Sequence[str]) -> list[str]:
    """Replace `-` by the words of standard input, one a line, as `mrgc submit` prints job ids."""
    words: list[str] = []
    for argument in arguments:
        words += [line.strip() for line in sys.stdin if line.strip()] if argument == "-" else [argument]
    return words


def read_sealed(file: Path, *, max_bytes: int) -> bytes:
    """Read a sealed result from a file, but no more than one byte over the cap: that is enough to refuse it.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return stream.read(max_bytes + 1)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error


def write_private(folder: Path, name: str, data: bytes) -> Path:
    """Write a file, mode 0600, whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Beside its final place, because a rename is atomic only within a file system. mkstemp makes it 0600.
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink()
            raise
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    return path
