"""What the engine gives up at start: core dumps, and being read by other processes of its user.

May import: the standard library. Called by worker.engine.__main__.
"""

from __future__ import annotations

import ctypes
import os
import resource
from typing import Final

_PR_SET_DUMPABLE: Final = 4  # prctl(2)


def harden() -> None:
    """Keep plaintext out of core files, and out of reach of ptrace and /proc/PID/mem for all but root.

    Raises:
        OSError: the kernel refused; an engine that cannot be hardened does not start.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
