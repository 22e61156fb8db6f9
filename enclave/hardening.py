"""What the enclave process gives up at start: core dumps and being traced.

Called by `enclave.enclave_app`. May import: the standard library.
"""

from __future__ import annotations

import ctypes
import os
import resource
from typing import Final

_PR_SET_DUMPABLE: Final = 4  # prctl(2)


def harden() -> None:
    """Forbid core dumps, and tracing by other processes of the same user.

    Raises:
        OSError: the kernel refused; an enclave that cannot be hardened does not start.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
