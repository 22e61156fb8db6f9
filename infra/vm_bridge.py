"""What a Nitro parent gives its enclave, for a VM: the heartbeat's echo, a way in, and the vsock-proxy towards KMS.

QEMU's vsock daemon shows the guest's AF_VSOCK as unix sockets: a connection to its own socket that begins with
"CONNECT port" goes to the guest, and the guest's connections to CID 2, port N, arrive at PATH_N. These bridges move
bytes and understand none of them; TLS to KMS ends in the guest. Called by `infra.vm`. May import: the standard library.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

HEARTBEAT: Final = b"\xb7"
#: The daemon answers at once or, before the guest's driver is up, never.
CONNECT_S: Final = 2.0
_PIECE_BYTES: Final = 64 << 10
_BACKLOG: Final = 64

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def heartbeat(path: Path) -> asyncio.Event:
    """Echo the enclave's heartbeat, as nitro-cli does on the parent; the event is set once it has come."""
    booted = asyncio.Event()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if await reader.readexactly(1) == HEARTBEAT:
                writer.write(HEARTBEAT)
                await writer.drain()
                booted.set()
        writer.close()

    await asyncio.start_unix_server(echo, path)
    return booted


async def into_guest(listen: Path, *, daemon: Path, port: int) -> asyncio.Server:
    """Listen on a unix socket and connect whoever comes with a port of the guest."""
    return await _bridge(listen, lambda: _connect_guest(daemon, port))


async def out_of_guest(path: Path, *, port: int) -> asyncio.Server:
    """Take the guest's connections at a socket of the daemon to a loopback TCP port, as vsock-proxy does."""
    return await _bridge(path, lambda: asyncio.open_connection("127.0.0.1", port))


async def _bridge(listen: Path, connect: Callable[[], Awaitable[Streams]]) -> asyncio.Server:
    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await connect()
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            writer.close()
            return
        # The end of either direction ends both, as with vsock-proxy.
        ways = {asyncio.create_task(_move(reader, far_writer)), asyncio.create_task(_move(far_reader, writer))}
        _, left = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in left:
            way.cancel()
        for each in (writer, far_writer):
            each.close()

    # asyncio replaces a socket file that a dead process has left.
    return await asyncio.start_unix_server(join, listen, backlog=_BACKLOG)


async def _connect_guest(daemon: Path, port: int) -> Streams:
    reader, writer = await asyncio.open_unix_connection(daemon)
    try:
        writer.write(b"CONNECT %d\n" % port)
        async with asyncio.timeout(CONNECT_S):
            if not (await reader.readuntil(b"\n")).startswith(b"OK "):
                raise ConnectionRefusedError
    except BaseException:
        writer.close()
        raise
    return reader, writer


async def _move(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_PIECE_BYTES):
            writer.write(data)
            await writer.drain()
