"""An engine of the test's own on a real socket: it speaks worker.engine_protocol and does what a test needs provoked.

It holds no key and seals nothing; its answers are a pure function of the sealed jobs.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from mrgc.errors import MrgcError
from mrgc.wire import frames
from mrgc.wire.addresses import listen, parse_address
from worker import engine_protocol
from worker.engine_protocol import HEALTHY, Health, ModelCard, Ready, Run, Served

Outcomes = Sequence[Served | MrgcError]

CARD = ModelCard("ab" * 32, 8, 256)


class Death(Exception):
    """Raised by an answer to make the engine die as a crash does."""


def result_of(job: bytes) -> bytes:
    """The result that this engine gives for a sealed job."""
    return b"result of " + hashlib.sha256(job).digest()


def serve_all(jobs: list[bytes]) -> Outcomes:
    """Serve every job."""
    return [Served("ok", result_of(job)) for job in jobs]


class PeerEngine:
    """Listens until closed; `die` and `revive` play a crash and a supervisor."""

    def __init__(self, path: Path) -> None:
        self.address = f"unix:{path}"
        self.answer: Callable[[list[bytes]], Outcomes] = serve_all
        self.health = Health(HEALTHY, "", {"forwards": 1})
        #: Cleared to hold answers back.
        self.may_answer = threading.Event()
        self.may_answer.set()
        #: Every batch that arrived, in order.
        self.batches: list[list[bytes]] = []
        self.deaths = 0
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.revive()

    def revive(self) -> None:
        """Listen again after a death."""
        self._listener = listen(parse_address(self.address), backlog=8)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def die(self) -> None:
        """Drop listener and connections without a word, as SIGKILL does."""
        with self._lock:
            listener, self._listener = self._listener, None
            connections, self._connections = self._connections, set()
        if listener is None:
            return
        self.deaths += 1
        for sock in (listener, *connections):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def close(self) -> None:
        """End for good."""
        self.may_answer.set()
        self.die()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with self._lock:
                    if self._listener is not listener:
                        sock.close()
                        return
                    self._connections.add(sock)
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            frames.send(sock, engine_protocol.ready_message(Ready({"m": CARD}, "boot", 1 << 20)))
            while True:
                frame = frames.recv(sock)
                if frame.op == engine_protocol.HEALTH:
                    frames.send(sock, engine_protocol.health_response(frame.id, self.health))
                else:
                    run = engine_protocol.parse_run(frame)
                    threading.Thread(target=self._run, args=(sock, run), daemon=True).start()
        except OSError:
            sock.close()

    def _run(self, sock: socket.socket, run: Run) -> None:
        jobs = [bytes(job) for job in run.jobs]
        with self._lock:
            self.batches.append(jobs)
        self.may_answer.wait()
        try:
            buffers = engine_protocol.run_response(run.id, self.answer(jobs))
        except Death:
            self.die()
            self.revive()
            return
        with contextlib.suppress(OSError), self._lock:
            frames.send(sock, buffers)
