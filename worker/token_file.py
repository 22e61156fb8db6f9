"""The file that hands the enclave token from the agent to the engines.

Called by `worker.enclave_agent`; the engine may read with it. May import: the standard library, mrgc.wire.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from mrgc.wire.enclave_protocol import TOKEN_BYTES

MODE: Final = 0o640  #: The agent's user writes, the engine's group reads.


def read_token(path: Path) -> bytes | None:
    """Return the token, or None when there is no file or it is not a token."""
    try:
        token = path.read_bytes()
    except OSError:
        return None
    return token if len(token) == TOKEN_BYTES else None


def write_token(path: Path, token: bytes) -> None:
    """Replace the token: a reader finds the old one or the new one, never a part, also after a power loss.

    Raises:
        OSError: the folder cannot be written to.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(token)
            file.flush()
            os.fchmod(file.fileno(), MODE)
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
