"""The packages that an image is made of, read without any installer: Debian's .deb and Python's wheels.

Nothing of a package is ever run: no maintainer script, no setup code. Called by `infra.eif.contents`. May import: the
standard library, mrgc.errors, infra.eif.tree.
"""

from __future__ import annotations

import io
import lzma
import stat
import tarfile
import zipfile
from typing import Final

from infra.eif.tree import Entry, Tree, link
from mrgc.errors import FormatError

_AR_MAGIC: Final = b"!<arch>\n"
_AR_HEADER_BYTES: Final = 60  # ar(5): name 16, time 12, owner 6, group 6, mode 8, size 10, end 2
_AR_SIZE: Final = slice(48, 58)
_DATA: Final = "data.tar.xz"

#: Top folders that are links into usr on every Debian since 12 (UsrMerge), whatever an older package still says.
_MERGED: Final = ("bin", "lib", "lib64", "sbin")
MERGED_LINKS: Final = {name: link(f"usr/{name}") for name in ("lib", "lib64")}


def deb_files(data: bytes) -> Tree:
    """Return the files of a Debian package (deb(5)), with the top folders merged into usr.

    Raises:
        FormatError: not a package with a data.tar.xz.
    """
    tree: Tree = {}
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(_member(data, _DATA)))) as archive:
        for member in archive:
            path = _merged(member.name.removeprefix("./").rstrip("/"))
            if member.issym():
                tree[path] = link(member.linkname)
            elif member.isreg():
                content = archive.extractfile(member)
                tree[path] = Entry(stat.S_IFREG | member.mode, content.read() if content else b"")
            elif member.islnk():
                tree[path] = tree[_merged(member.linkname.removeprefix("./"))]
    return tree


def wheel_files(data: bytes) -> Tree:
    """Return the files of a wheel, as they would lie in a folder of packages."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        return {name: Entry(stat.S_IFREG | 0o644, archive.read(name)) for name in names}


def _merged(path: str) -> str:
    return f"usr/{path}" if path.partition("/")[0] in _MERGED else path


def _member(data: bytes, name: str) -> bytes:
    if not data.startswith(_AR_MAGIC):
        raise FormatError("not a Debian package")
    at = len(_AR_MAGIC)
    while at + _AR_HEADER_BYTES <= len(data):
        header = data[at : at + _AR_HEADER_BYTES]
        size = int(header[_AR_SIZE])
        at += _AR_HEADER_BYTES
        if header[:16].decode("ascii").rstrip(" /") == name:
            return data[at : at + size]
        at += size + size % 2
    raise FormatError(f"a Debian package without {name}")
