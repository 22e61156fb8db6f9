"""Where a frame socket lives: `unix:PATH` or `vsock:CID:PORT`.

The parent reaches an enclave over AF_VSOCK; on one machine the same code speaks over AF_UNIX. Neither needs a
network interface, and no other family is accepted.

May import: the standard library, mrgc.errors.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from pathlib import Path
from typing import Final, NamedTuple

from mrgc.errors import ConfigError

PARENT_CID: Final = 3  #: AWS: Nitro Enclaves User Guide: the parent is always CID 3 as seen from its enclave.
FIRST_VSOCK_CID: Final = 3  #: 0 to 2 are hypervisor, local and host (vsock(7)): never a peer of ours.
_VSOCK: Final = re.compile(r"vsock:([0-9]{1,10}):([0-9]{1,10})")
_UINT32_END: Final = 1 << 32
#: Asked of the kernel for a socket file's sending side, so that a batch of 64 jobs of 4 KiB is written without waiting
#: for its reader. It is the writer's memory, and the kernel cuts it to net.core.wmem_max. Does nothing on AF_VSOCK.
_SEND_BUFFER_BYTES: Final = 1 << 20
_MAX_UNIX_PATH_BYTES: Final = 107  #: sun_path of unix(7), less its NUL.


class UnixAddress(NamedTuple):
    """A socket file."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


class VsockAddress(NamedTuple):
    """An AF_VSOCK endpoint."""

    cid: int
    port: int

    def __str__(self) -> str:
        return f"vsock:{self.cid}:{self.port}"


Address = UnixAddress | VsockAddress


def parse_address(text: str) -> Address:
    """Parse `unix:PATH` or `vsock:CID:PORT`.

    Raises:
        ConfigError: neither form, a path too long for a socket, or a CID below 3.
    """
    if text.startswith("unix:") and 0 < len(os.fsencode(text[5:])) <= _MAX_UNIX_PATH_BYTES:
        return UnixAddress(Path(text[5:]))
    match = _VSOCK.fullmatch(text)
    if match is not None:
        cid, port = int(match[1]), int(match[2])
        if FIRST_VSOCK_CID <= cid < _UINT32_END and port < _UINT32_END:
            return VsockAddress(cid, port)
    raise ConfigError(f"address {text!r} is neither unix:PATH (at most 107 bytes) nor vsock:CID:PORT with CID >= 3")


def connect(address: Address, *, timeout_s: float) -> socket.socket:
    """Connect and leave `timeout_s` set on the socket.

    Raises:
        OSError: nobody listens there, or the timeout passed.
    """
    sock = _socket(address)
    try:
        # Every socket sets its own: Celery's shutdown installs a process-wide default timeout.
        sock.settimeout(timeout_s)
        sock.connect(_target(address))
    except OSError:
        sock.close()
        raise
    return sock


def listen(address: Address, *, backlog: int, mode: int = 0o600) -> socket.socket:
    """Listen on a vsock port, or on a socket file created with `mode`.

    A socket file left by a dead process is replaced; anything else at that path is not ours to remove.

    Raises:
        OSError: the address is taken or not allowed.
    """
    sock = _socket(address)
    try:
        if isinstance(address, UnixAddress):
            _remove_stale(address.path)
            previous = os.umask(0o777 & ~mode)
            try:
                sock.bind(_target(address))
            finally:
                os.umask(previous)
        else:
            sock.bind((socket.VMADDR_CID_ANY, address.port))
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


def accept(listener: socket.socket) -> socket.socket:
    """Wait for a peer, and return its connection: blocking, without a timeout.

    Raises:
        OSError: the listener was closed or shut down, or there is no room for another connection.
    """
    sock, _ = listener.accept()
    # Every socket sets its own: Celery's shutdown installs a process-wide default timeout.
    sock.settimeout(None)
    return _widened(sock)


def _socket(address: Address) -> socket.socket:
    family = socket.AF_UNIX if isinstance(address, UnixAddress) else socket.AF_VSOCK
    return _widened(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC))


def _widened(sock: socket.socket) -> socket.socket:
    if sock.family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    return sock


def _target(address: Address) -> str | tuple[int, int]:
    return str(address.path) if isinstance(address, UnixAddress) else (address.cid, address.port)


def _remove_stale(path: Path) -> None:
    try:
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
    except FileNotFoundError:
        pass
