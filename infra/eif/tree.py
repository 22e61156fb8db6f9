"""A file tree in memory, as packages bring it and as the kernel unpacks it: sorted, without owners or times.

Called by `infra.eif.contents`, `infra.eif.debian` and `infra.eif.cpio`. May import: the standard library, mrgc.errors.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

from mrgc.errors import ConfigError


class Entry(NamedTuple):
    """One node: its type and permission bits (stat(2)), and a file's content or a link's target."""

    mode: int
    data: bytes = b""

    @property
    def is_file(self) -> bool:
        """Whether this is a regular file."""
        return stat.S_ISREG(self.mode)


#: Path below the root, without a leading slash → node. Parents that are missing are made when the tree is packed.
Tree = dict[str, Entry]

DIRECTORY = Entry(stat.S_IFDIR | 0o755)


def regular(data: bytes, *, is_executable: bool = False) -> Entry:
    """Return a regular file that everyone may read and nobody may change."""
    return Entry(stat.S_IFREG | (0o555 if is_executable else 0o444), data)


def link(target: str) -> Entry:
    """Return a symbolic link."""
    return Entry(stat.S_IFLNK | 0o777, target.encode())


def select(source: Mapping[str, Entry], patterns: Iterable[str]) -> Tree:
    """Return the files and links whose paths match a pattern of fnmatch(3); no file of them can be executed.

    Raises:
        ConfigError: a pattern matches nothing: the package has changed, and with it what the image would lack.
    """
    chosen: Tree = {}
    for pattern in patterns:
        matched = [
            path for path, entry in source.items() if not stat.S_ISDIR(entry.mode) and fnmatchcase(path, pattern)
        ]
        if not matched:
            raise ConfigError(f"nothing in the package matches {pattern}")
        chosen.update((path, _settled(source[path])) for path in matched)
    return chosen


def moved(source: Mapping[str, Entry], folder: str) -> Tree:
    """Return the same tree below a folder."""
    return {f"{folder}/{path}": entry for path, entry in source.items()}


def walk(tree: Mapping[str, Entry]) -> Iterator[tuple[str, Entry]]:
    """Yield the tree's nodes with all their parents, each parent before its children, in bytewise order."""
    parents = {path[:at] for path in tree for at, character in enumerate(path) if character == "/"}
    whole = dict.fromkeys(parents, DIRECTORY) | dict(tree)
    for path in sorted(whole, key=str.encode):
        yield path, whole[path]


def _settled(entry: Entry) -> Entry:
    # A package's permissions mean nothing in an image, whose root is read-only; what runs there is named one by one.
    return regular(entry.data) if entry.is_file else entry
