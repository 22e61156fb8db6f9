"""Accepts connections, one thread each, and cuts those that are overdue (docs/spec.md §6).

Called by `enclave.enclave_app`. May import: the standard library, enclave, mrgc.errors, mrgc.wire.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import suppress
from typing import Final

from enclave.connection import Budgets, Connection, Limits
from enclave.counters import Counters
from enclave.frame_budget import HEADERS_BYTES, STRANGERS_BYTES, FrameBudget
from enclave.operations import Operations
from mrgc.wire.addresses import accept

MAX_CONNECTIONS: Final = 64  #: docs/spec.md §6: two for each of 8 engines, the agent, health, and room.
STOP_S: Final = 5.0  #: For the threads to notice that their sockets were cut.


class Server:
    """Serves one listener at a time.

    Args:
        operations: performs the requests.
        counters: gets the gauge `connections`.
        limits: deadlines of every connection.
    """

    def __init__(self, operations: Operations, counters: Counters, limits: Limits | None = None) -> None:
        self._operations = operations
        self._counters = counters
        self._limits = limits or Limits()
        frames = FrameBudget()
        self._budgets = Budgets(frames, FrameBudget(STRANGERS_BYTES, within=frames), FrameBudget(HEADERS_BYTES))
        self._lock = threading.Lock()
        #: In order of arrival.
        self._connections: dict[Connection, threading.Thread] = {}
        # A byte here ends `serve`; sending one is all that a signal handler has to do.
        self._wake_receiver, self._wake_sender = socket.socketpair()

    def serve(self, listener: socket.socket) -> None:
        """Accept until `stop`, then cut every connection and wait for its thread."""
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(self._wake_receiver, select.POLLIN)
        try:
            while not any(fd == self._wake_receiver.fileno() for fd, _ in poll.poll()):
                self._accept(listener)
        finally:
            listener.close()
            self._end_all()
            self._wake_receiver.close()
            self._wake_sender.close()

    def stop(self) -> None:
        """Make `serve` return; safe in a signal handler, and more than once."""
        with suppress(OSError):
            self._wake_sender.send(b"\x00")

    def cut_overdue(self) -> None:
        """Cut the connections whose peer has kept the enclave waiting beyond its limits."""
        now_s = time.monotonic()
        with self._lock:
            overdue = [connection for connection in self._connections if connection.is_overdue(now_s)]
        for connection in overdue:
            connection.cut()

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock = accept(listener)
        except OSError:
            return  # The peer was gone before we came to it.
        connection = Connection(
            sock,
            self._operations,
            budgets=self._budgets,
            counters=self._counters,
            limits=self._limits,
        )
        thread = threading.Thread(target=self._run, args=(connection,), name="connection", daemon=True)
        with self._lock:
            is_full = len(self._connections) >= MAX_CONNECTIONS
            stranger = next((c for c in self._connections if not c.peer.has_token), None) if is_full else None
            if not is_full:
                self._connections[connection] = thread
        if is_full:
            # A local process without the token must not be able to keep the engine out by sitting on connections:
            # the oldest stranger leaves, so that whoever tries again gets in.
            connection.refuse()
            if stranger is not None:
                stranger.cut()
            return
        self._counters.add(connections=1)
        thread.start()

    def _run(self, connection: Connection) -> None:
        try:
            connection.serve()
        finally:
            with self._lock:
                del self._connections[connection]
            connection.close()
            self._counters.add(connections=-1)

    def _end_all(self) -> None:
        for budget in self._budgets:
            budget.close()
        with self._lock:
            running = dict(self._connections)
        for connection in running:
            connection.cut()
        give_up_s = time.monotonic() + STOP_S
        for thread in running.values():
            thread.join(max(0.0, give_up_s - time.monotonic()))
