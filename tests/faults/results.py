"""Where a stack's result objects lie, and what each held when it was first seen."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from tests.faults.s3_server import S3Server

#: How often a directory is looked through.
LOOK_S: Final = 0.1
SUFFIX: Final = ".mrgc"


class Results(Protocol):
    """The result objects of one stack."""

    def names(self) -> set[str]:
        """Names of the objects seen so far, tenant/job/request.mrgc."""
        ...

    def objects(self) -> dict[str, bytes]:
        """Every object as it is now."""
        ...

    def changed(self) -> set[str]:
        """Names of the objects that differ from when they were first seen, or are gone."""
        ...

    def close(self) -> None:
        """Look no more."""
        ...


class BucketResults:
    """Objects of an S3Server, which sees every write.

    Args:
        server: keeps them.
    """

    def __init__(self, server: S3Server) -> None:
        self._server = server

    def names(self) -> set[str]:
        """See `Results.names`."""
        return {name for name in self._server.objects() if name.endswith(SUFFIX)}

    def objects(self) -> dict[str, bytes]:
        """See `Results.objects`."""
        return {name: body for name, body in self._server.objects().items() if name.endswith(SUFFIX)}

    def changed(self) -> set[str]:
        """See `Results.changed`."""
        return {name for name in self._server.rewritten if name.endswith(SUFFIX)}

    def close(self) -> None:
        """See `Results.close`."""


class DirectoryResults:
    """Objects in a directory, looked through all the time by a thread of its own.

    Args:
        root: names the directory, which may lie in the mount namespace of a process.
    """

    def __init__(self, root: Callable[[], Path]) -> None:
        self._root = root
        self._first: dict[str, bytes] = {}
        self._closing = threading.Event()
        self._looker = threading.Thread(target=self._look, name="sightings", daemon=True)
        self._looker.start()

    def names(self) -> set[str]:
        """See `Results.names`."""
        return set(self._first)

    def objects(self) -> dict[str, bytes]:
        """See `Results.objects`."""
        return {name: path.read_bytes() for name, path in self._paths().items()}

    def changed(self) -> set[str]:
        """See `Results.changed`."""
        now = self.objects()
        return {name for name, body in dict(self._first).items() if now.get(name) != body}

    def close(self) -> None:
        """See `Results.close`."""
        self._closing.set()
        self._looker.join()

    def _look(self) -> None:
        while not self._closing.wait(LOOK_S):
            # A look that meets the end of the process, or of a folder, is taken again.
            with contextlib.suppress(OSError):
                for name, path in self._paths().items():
                    if name not in self._first:
                        self._first[name] = path.read_bytes()

    def _paths(self) -> dict[str, Path]:
        root = self._root()
        return {str(path.relative_to(root)): path for path in root.rglob(f"*{SUFFIX}")}
