"""Search a process's memory, region by region, for byte strings that must not be there.

Needs the right to trace the process. May import: the standard library. Called by bench.engine_memory and the tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_REGION: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+\s*(.*)")
_CHUNK_BYTES: Final = 16 << 20


def find(pid: int, needles: Iterable[bytes]) -> dict[bytes, list[str]]:
    """Search every readable region of /proc/PID/mem.

    Returns:
        For each needle that was found, the regions that hold it: the mapped file, [heap], [stack] or "anonymous".
    """
    wanted = list(needles)
    longest = max(map(len, wanted))
    found: dict[bytes, list[str]] = {}
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            match = _REGION.fullmatch(line)
            if match is None or "r" not in match[3] or match[4] in ("[vvar]", "[vsyscall]", "[vvar_vclock]"):
                continue
            start, end = int(match[1], 16), int(match[2], 16)
            for offset in range(start, end, _CHUNK_BYTES):
                memory.seek(offset)
                try:
                    chunk = memory.read(min(_CHUNK_BYTES + longest, end - offset))
                except OSError:
                    continue  # a reserved page that was never backed holds nothing
                for needle in wanted:
                    if needle in chunk:
                        found.setdefault(needle, []).append(match[4] or "anonymous")
    return found


def inet_sockets(pid: int) -> list[str]:
    """Return the inet sockets among a process's open files, as lines of /proc/PID/net/{tcp,tcp6,udp,udp6,raw}."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(fd.readlink())
        except FileNotFoundError:
            continue  # closed while we looked
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    return [
        f"{table}: {line.strip()}"
        for table in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6")
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        if line.split()[9] in inodes
    ]
