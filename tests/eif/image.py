"""Reads a built image the way the kernel does: sections by struct, ramdisks by the cpio format, nothing of our own."""

from __future__ import annotations

import stat
import struct
from pathlib import Path
from typing import NamedTuple


class Node(NamedTuple):
    """One member of a cpio archive."""

    mode: int
    owner: tuple[int, int]
    modified_s: int
    data: bytes

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


def ramdisks(file: Path) -> list[bytes]:
    """Return the ramdisk sections of an image file."""
    data = file.read_bytes()
    offsets = struct.unpack_from(">32Q", data, 28)
    found = []
    for offset in offsets[: struct.unpack_from(">H", data, 26)[0]]:
        kind, _, size = struct.unpack_from(">HHQ", data, offset)
        if kind == 3:
            found.append(data[offset + 12 : offset + 12 + size])
    return found


def unpack(archive: bytes) -> dict[str, Node]:
    """Return the members of a cpio archive in "newc" form, in their order."""
    members: dict[str, Node] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        mode, user, group, _, modified_s, size, name_size = (*fields[1:7], fields[11])
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        start = -(-(at + 110 + name_size) // 4) * 4
        if name == "TRAILER!!!":
            assert not any(archive[start:])
            return members
        assert name not in members
        members[name] = Node(mode, (user, group), modified_s, archive[start : start + size])
        at = -(-(start + size) // 4) * 4


def lay_out(members: dict[str, Node], root: Path) -> None:
    """Write an unpacked archive to a folder."""
    root.mkdir()
    for name, node in members.items():
        if stat.S_ISDIR(node.mode):
            (root / name).mkdir()
        elif stat.S_ISLNK(node.mode):
            (root / name).symlink_to(node.data.decode())
        else:
            (root / name).write_bytes(node.data)
            (root / name).chmod(stat.S_IMODE(node.mode))
