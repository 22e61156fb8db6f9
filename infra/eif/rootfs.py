"""The application's tree as a tar archive, for a Docker image made from nothing but it (enclave/Dockerfile).

Called by `infra.eif.__main__`. May import: the standard library, infra.eif.
"""

from __future__ import annotations

import io
import stat
import tarfile
from collections.abc import Mapping

from infra.eif.tree import Entry, walk


def pack(tree: Mapping[str, Entry]) -> bytes:
    """Return the archive: sorted, every owner and time zero."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path, entry in walk(tree):
            member = tarfile.TarInfo(path)
            member.mode = stat.S_IMODE(entry.mode)
            if stat.S_ISDIR(entry.mode):
                member.type = tarfile.DIRTYPE
            elif stat.S_ISLNK(entry.mode):
                member.type, member.linkname = tarfile.SYMTYPE, entry.data.decode()
            else:
                member.size = len(entry.data)
            archive.addfile(member, io.BytesIO(entry.data) if entry.is_file else None)
    return target.getvalue()
