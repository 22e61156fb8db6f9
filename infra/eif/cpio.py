"""Packs a tree as a cpio archive of the form "newc", which is what the Linux kernel unpacks as its root file system.

Documentation/driver-api/early-userspace/buffer-format.rst of Linux. Every owner and time is zero and names are sorted,
so the same tree gives the same bytes. Called by `infra.eif.contents`. May import: the standard library, infra.eif.tree.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from typing import Final

from infra.eif.tree import Entry, walk

_MAGIC: Final = "070701"
_TRAILER: Final = "TRAILER!!!"
#: Archives follow each other in the kernel's memory; each begins at a multiple of four, and cpio's own block is this.
_BLOCK_BYTES: Final = 512


def pack(tree: Mapping[str, Entry]) -> bytes:
    """Return the archive of a tree; missing parent folders are added with mode 0755."""
    parts = [_member(path, entry, inode=inode) for inode, (path, entry) in enumerate(walk(tree), 1)]
    parts.append(_member(_TRAILER, Entry(0), inode=0))
    return _padded(b"".join(parts), _BLOCK_BYTES)


def _member(path: str, entry: Entry, *, inode: int) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
    header = _MAGIC + "".join(f"{field:08x}" for field in fields)
    return _padded(header.encode() + name, 4) + _padded(entry.data, 4)


def _padded(data: bytes, multiple: int) -> bytes:
    return data + bytes(-len(data) % multiple)
