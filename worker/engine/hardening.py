"""What the engine does at start so that plaintext stays where it is needed and no longer than needed.

May import: the standard library. Called by worker.engine.__main__, before anything else is imported.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Makes the allocator overwrite what is freed. Texts pass through Python strings and through the tokeniser's own
#: memory, which nobody can zero; without this they outlive their batch by minutes. Python's and glibc's caches of small
#: blocks are off because they hand blocks back without overwriting them. Costs about 5 % of a forward pass on a CPU.
#: glibc reads its tunables at exec only (https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html).
ERASING_ALLOCATOR: Final = {
    "GLIBC_TUNABLES": "glibc.malloc.perturb=1:glibc.malloc.tcache_count=0",
    "PYTHONMALLOC": "malloc",
}
_MARK: Final = "MRGC_ENGINE_STARTED_ANEW"
_PR_SET_DUMPABLE: Final = 4  # prctl(2)
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4  # mlockall(2)


def use_erasing_allocator(environ: Mapping[str, str]) -> None:
    """Start the same program again, in the same process, with an allocator that overwrites freed memory.

    Returns only if it runs under one already. Must come before threads and before open files that matter.

    Args:
        environ: this process's environment.
    """
    mark = str(os.getpid())
    if environ.get(_MARK) != mark:
        # The mark ends it after one turn: an exec keeps the pid, and a value that someone else set is not it.
        command = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, command, {**environ, **ERASING_ALLOCATOR, _MARK: mark})  # noqa: S606


def forbid_dumps() -> None:
    """Keep plaintext out of core files, and out of reach of ptrace and /proc/PID/mem for all but root.

    Three ways, because each has a hole: a core pattern that is a pipe ignores the limit, a sysctl may let undumpable
    processes be dumped, and the filter (MADV_DONTDUMP for every mapping) leaves the registers.

    Raises:
        OSError: the kernel refused; an engine that cannot be hardened does not start.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Before the process becomes undumpable, after which its files in /proc are root's.
    Path("/proc/self/coredump_filter").write_text("0", encoding="ascii")
    libc = ctypes.CDLL(None, use_errno=True)
    # After the exec: a new program is dumpable again (execve(2)).
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def forbid_swap() -> bool:
    """Lock every page that this process has or gets, as soon as it is touched.

    Only where no limit stands in the way: below one, allocations would fail once it is reached. The service's unit
    lifts the limit, and forbids swap for its whole control group besides.

    Returns:
        Whether it is so.
    """
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0)
