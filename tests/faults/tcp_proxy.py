"""A TCP proxy on loopback that misbehaves on request: cut, refuse, fall silent, or lose one answer."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

CHUNK_BYTES: Final = 1 << 16
#: SO_LINGER on with zero seconds: a close sends RST, as a vanished peer's host does.
_RESET: Final = struct.pack("ii", 1, 0)


@dataclass(eq=False, slots=True)
class _Link:
    client: socket.socket
    server: socket.socket
    #: The request whose answer is to be lost has passed.
    loses_answer: bool = False
    closed: threading.Lock = field(default_factory=threading.Lock)

    def cut(self) -> None:
        if not self.closed.acquire(blocking=False):
            return
        for sock in (self.client, self.server):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            # A close alone would leave the other thread inside its recv.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


class TcpProxy:
    """Forwards connections to `target`.

    Args:
        target: port on loopback, asked at every connection because the server may not have chosen it yet.
    """

    def __init__(self, target: Callable[[], int]) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
        self._flows = threading.Event()
        self._flows.set()
        self._marked = b""
        self._to_lose = 0
        #: Answers lost so far.
        self.lost = 0
        self._listener: socket.socket | None = None
        self.port = 0
        self._listen()

    def cut(self) -> None:
        """Reset every connection; new ones are served."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.cut()

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Reset every connection and refuse new ones, as a host without the server does."""
        self._stop_listening()
        self.cut()
        try:
            yield
        finally:
            self._listen()

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Take bytes and connections, and pass nothing on in either direction: a black hole."""
        self._flows.clear()
        try:
            yield
        finally:
            self._flows.set()

    def lose_answers(self, request: bytes, *, times: int) -> None:
        """Swallow the answers to the next `times` requests that hold these bytes, and cut their connections."""
        with self._lock:
            self._marked, self._to_lose = request, times

    def close(self) -> None:
        """End for good."""
        self._stop_listening()
        self._flows.set()
        self.cut()

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target()))
            except OSError:
                client.close()
                continue
            link = _Link(client, server)
            with self._lock:
                self._links.add(link)
            for pump in (self._requests, self._answers):
                threading.Thread(target=self._pumping, args=(link, pump), daemon=True).start()

    def _pumping(self, link: _Link, pump: Callable[[_Link], None]) -> None:
        with contextlib.suppress(OSError):
            pump(link)
        link.cut()
        with self._lock:
            self._links.discard(link)

    def _requests(self, link: _Link) -> None:
        while data := link.client.recv(CHUNK_BYTES):
            self._flows.wait()
            with self._lock:
                if self._to_lose and self._marked in data:
                    self._to_lose -= 1
                    link.loses_answer = True
            link.server.sendall(data)

    def _answers(self, link: _Link) -> None:
        while data := link.server.recv(CHUNK_BYTES):
            self._flows.wait()
            if link.loses_answer:
                self.lost += 1
                return
            link.client.sendall(data)
