"""The one-machine SQS: `python -m infra.local_sqs --port PORT [--dir DIR]`.

SQS's JSON protocol over HTTP on loopback, one event loop. What it has confirmed survives a SIGKILL when it has a
directory; calls that arrive together share one flush to the disk. Called by `infra.local`, tests and benchmarks, as a
process of its own. May import: the standard library, infra. It is no part of production, where SQS is AWS's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from infra.durable_file import replace_file
from infra.sqs_api import SqsApi, SqsFault
from infra.sqs_journal import Journal

#: Ten messages of 1 MiB, with what JSON adds to them.
MAX_BODY_BYTES: Final = 16 << 20
MAX_HEAD_BYTES: Final = 64 << 10
#: The region in ARNs; signatures are not looked at.
REGION: Final = "eu-west-1"

_TARGET_PREFIX: Final = "AmazonSQS."
_CONTENT_TYPE: Final = "application/x-amz-json-1.0"

log = logging.getLogger("infra.local_sqs")


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class SqsServer:
    """Serves one set of queues.

    Args:
        directory: holds the journal; None keeps everything in memory.
        latency_s: added to every call, as a network would.
    """

    def __init__(self, *, directory: Path | None, latency_s: float = 0.0) -> None:
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(directory / "queues.sqlite" if directory is not None else None)
        self._latency_s = latency_s
        #: Calls since the start, by operation.
        self._calls: Counter[str] = Counter()
        self._api: SqsApi
        self._server: asyncio.Server
        self._commit: asyncio.Future[None] | None = None

    async def start(self, port: int) -> int:
        """Listen on a loopback port, 0 for any free one; returns the port."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", port, limit=MAX_HEAD_BYTES)
        bound: int = self._server.sockets[0].getsockname()[1]
        self._api = SqsApi(self._journal, endpoint=f"http://127.0.0.1:{bound}", region=REGION)
        return bound

    def close(self) -> None:
        """Stop listening and close the journal."""
        self._server.close()
        self._journal.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await _read_request(reader)) is not None:
                writer.write(await self._answer(request, reader))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as err:
            log.debug("sqs connection ended early: %s", err)
        finally:
            writer.close()

    async def _answer(self, request: _Request, reader: asyncio.StreamReader) -> bytes:
        if request.method == "GET":
            # For benchmarks: what the clients really called.
            found = request.path == "/calls"
            return _response(200 if found else 404, json.dumps(self._calls if found else {}).encode())
        operation = request.headers.get("x-amz-target", "").removeprefix(_TARGET_PREFIX)
        if not self._api.is_operation(operation):
            return _fault(SqsFault("UnsupportedOperation", "no such operation here"))
        self._calls[operation] += 1
        if self._latency_s:
            await asyncio.sleep(self._latency_s)
        try:
            given: Any = json.loads(request.body)
            members = await self._api.call(operation, given, is_gone=reader.at_eof)
        except (ValueError, RecursionError):
            return _fault(SqsFault("InvalidParameterValue", "body is not JSON"))
        except SqsFault as fault:
            return _fault(fault)
        if self._journal.is_dirty:
            await self._committed()
        return _response(200, json.dumps(members).encode())

    async def _committed(self) -> None:
        """Wait for a commit that begins after this call; those who wait together share it."""
        loop = asyncio.get_running_loop()
        if self._commit is None:
            self._commit = loop.create_future()
            loop.call_soon(self._flush)
        await self._commit

    def _flush(self) -> None:
        waiting, self._commit = self._commit, None
        self._journal.commit()
        if waiting is not None:
            waiting.set_result(None)


async def _read_request(reader: asyncio.StreamReader) -> _Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError as err:
        if err.partial:
            raise
        return None
    first, *lines = head.split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", "0"))
    if not 0 <= length <= MAX_BODY_BYTES:
        raise ValueError("body is too long")
    return _Request(method, path, headers, await reader.readexactly(length))


def _response(status: int, body: bytes, *headers: str) -> bytes:
    head = [
        f"HTTP/1.1 {status} {'OK' if status == 200 else 'Refused'}",
        f"x-amzn-RequestId: {uuid.uuid4()}",
        f"Content-Type: {_CONTENT_TYPE}",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def _fault(fault: SqsFault) -> bytes:
    body = json.dumps({"__type": f"com.amazonaws.sqs#{fault.kind}", "message": fault.text}).encode()
    return _response(400, body, f"x-amzn-query-error: {fault.code};Sender")


async def _serve(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = SqsServer(directory=arguments.dir, latency_s=arguments.latency_ms / 1_000)
    port = await server.start(arguments.port)
    if arguments.ready_file is not None:
        ready = {"endpoint": f"http://127.0.0.1:{port}", "port": port, "pid": os.getpid()}
        replace_file(arguments.ready_file, json.dumps(ready).encode(), mode=0o644)
    with contextlib.closing(server):
        await stop.wait()


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m infra.local_sqs", description="SQS for one machine.")
    parser.add_argument("--port", type=int, default=0, help="loopback port; 0 takes any free one (default)")
    parser.add_argument("--dir", type=Path, help="keep queues and messages here; without it they are in memory only")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="added to every call, as a network would")
    parser.add_argument("--ready-file", type=Path, help="written when the server listens: endpoint, port, pid")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    try:
        asyncio.run(_serve(arguments))
    except OSError as err:
        log.error("sqs cannot start: %s", err)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
