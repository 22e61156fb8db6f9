"""Asks one engine for its health, on a connection of its own: a full engine reads no further message on the other.

May import: the standard library, mrgc.errors, mrgc.wire, worker. Called by the intake.
"""

from __future__ import annotations

import socket
import threading
from typing import Final

from mrgc.errors import MrgcError
from mrgc.wire import frames
from mrgc.wire.addresses import connect, parse_address
from worker import engine_protocol
from worker.engine_protocol import Health

PERIOD_S: Final = 1.0
#: A healthy engine answers at once; one whose process is stopped never does.
TIMEOUT_S: Final = 10.0


class EngineWatch:
    """The last health of one engine.

    Args:
        address: `unix:PATH`.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.health: Health | None = None

    @property
    def reason(self) -> str | None:
        """Why the engine cannot serve now; None when it can."""
        health = self.health
        if health is None:
            return "engine_unreachable"
        return None if health.status == engine_protocol.HEALTHY else (health.reason or health.status)

    def run(self, stop: threading.Event) -> None:
        """Ask once a second until `stop` is set."""
        while not stop.is_set():
            try:
                with connect(parse_address(self.address), timeout_s=TIMEOUT_S) as sock:
                    self._ask(sock, stop)
            except (OSError, MrgcError):
                self.health = None
            stop.wait(PERIOD_S / 4)

    def _ask(self, sock: socket.socket, stop: threading.Event) -> None:
        engine_protocol.parse_ready(frames.recv(sock, max_bytes=frames.MAX_HEADER_BYTES))
        request_id = 0
        while not stop.is_set():
            request_id += 1
            frames.send(sock, engine_protocol.health_request(request_id))
            self.health = engine_protocol.parse_health(frames.recv(sock, max_bytes=frames.MAX_HEADER_BYTES))
            stop.wait(PERIOD_S)
