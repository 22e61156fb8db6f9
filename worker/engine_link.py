"""The intake's connection to one engine: submit job batches, receive outcomes, notice death, reconnect.

Several requests are in flight, so that the engine always has a next batch at hand; it answers in any order. The link
knows nothing of leases, queues or results: whatever happens, it tells its owner exactly once per batch, with the
outcomes or with the engine's death.

May import: the standard library, structlog, mrgc.errors, mrgc.wire, worker. Called by worker.dispatch.
"""

from __future__ import annotations

import contextlib
import queue
import select
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from mrgc.errors import EngineUnreachable, MrgcError
from mrgc.wire import frames
from mrgc.wire.addresses import connect, parse_address
from mrgc.wire.strict_cbor import Buffer
from worker import engine_protocol
from worker.backoff import Backoff
from worker.engine_protocol import Served
from worker.job import Job

#: Batches in one engine: one in its forward pass, one being opened before it, one being sealed behind it.
SLOTS: Final = 3
#: docs/spec.md §6: a ticket dies 900 s after its job was opened, so an older request can only fail.
REQUEST_DEADLINE_S: Final = 900.0
#: Longest silence inside a frame; only a stopped process makes it.
READ_TIMEOUT_S: Final = 60.0
CONNECT_TIMEOUT_S: Final = 5.0
#: How often a waiting reader looks at deadlines and at the stop event.
POLL_S: Final = 0.25

_log = structlog.get_logger()


class LinkOwner(Protocol):
    """Whom a link reports to. Calls come from the link's reader thread and must not block."""

    def connected(self) -> None:
        """An engine has said what it serves."""
        ...

    def answered(self, jobs: Sequence[Job], outcomes: Sequence[Served | MrgcError]) -> None:
        """One batch has its outcomes, in order."""
        ...

    def died(self, batches: Sequence[Sequence[Job]]) -> None:
        """The engine is gone; these batches were in it."""
        ...


@dataclass(slots=True)
class _Connection:
    sock: socket.socket
    ready: engine_protocol.Ready
    #: By request id: the batch, and monotonic seconds of its submission.
    inflight: dict[int, tuple[Sequence[Job], float]] = field(default_factory=dict)
    outgoing: queue.SimpleQueue[list[Buffer] | None] = field(default_factory=queue.SimpleQueue)


class EngineLink:
    """One engine's address and, while there is one, the connection to it.

    Args:
        address: `unix:PATH`.
        owner: whom outcomes and deaths are reported to.
    """

    def __init__(self, address: str, owner: LinkOwner) -> None:
        self.address = address
        self._owner = owner
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._last_id = 0

    @property
    def ready(self) -> engine_protocol.Ready | None:
        """What the engine serves; None while it is not connected."""
        connection = self._connection
        return connection.ready if connection is not None else None

    @property
    def inflight(self) -> int:
        """Batches in the engine."""
        connection = self._connection
        return len(connection.inflight) if connection is not None else 0

    @property
    def has_room(self) -> bool:
        """Whether the engine is connected and takes another batch."""
        return self._connection is not None and self.inflight < SLOTS

    def submit(self, jobs: Sequence[Job]) -> bool:
        """Send one batch to the engine; never blocks.

        Args:
            jobs: 1..1,024, all of one model, below a frame's limit together.

        Returns:
            False if the engine is gone: the batch was never in it, and is not reported.
        """
        with self._lock:
            connection = self._connection
            if connection is None:
                return False
            self._last_id += 1
            sealed, exclusive = [job.sealed for job in jobs], any(job.is_exclusive for job in jobs)
            request = engine_protocol.run_request(self._last_id, jobs[0].model, sealed, exclusive=exclusive)
            connection.inflight[self._last_id] = jobs, time.monotonic()
            connection.outgoing.put(request)
            return True

    def run(self, stop: threading.Event) -> None:
        """Connect, read outcomes, reconnect, until `stop` is set."""
        backoff = Backoff(base_s=0.05, cap_s=2.0)
        while not stop.is_set():
            try:
                connection = self._connect()
            except (OSError, MrgcError):
                stop.wait(backoff.next_s())
                continue
            backoff.reset()
            try:
                self._serve(connection, stop)
            except (OSError, MrgcError) as err:
                if not stop.is_set():
                    _log.warning("engine is gone", engine=self.address, exc_info=err)
            finally:
                self._disconnect(connection, report=not stop.is_set())

    def _connect(self) -> _Connection:
        sock = connect(parse_address(self.address), timeout_s=CONNECT_TIMEOUT_S)
        try:
            sock.settimeout(READ_TIMEOUT_S)
            ready = engine_protocol.parse_ready(frames.recv(sock, max_bytes=frames.MAX_HEADER_BYTES))
        except BaseException:
            sock.close()
            raise
        connection = _Connection(sock, ready)
        name = f"engine-writer {self.address}"
        threading.Thread(target=_write, args=(connection,), name=name, daemon=True).start()
        with self._lock:
            self._connection = connection
        _log.info("engine connected", engine=self.address, models=sorted(ready.models), boot=ready.boot)
        self._owner.connected()
        return connection

    def _serve(self, connection: _Connection, stop: threading.Event) -> None:
        poll = select.poll()
        poll.register(connection.sock, select.POLLIN)
        while not stop.is_set():
            if not poll.poll(POLL_S * 1_000):
                self._ensure_in_time(connection)
                continue
            frame = frames.recv(connection.sock)
            with self._lock:
                jobs, _ = connection.inflight.get(frame.id, ((), 0.0))
            outcomes = engine_protocol.parse_outcomes(frame, len(jobs))
            if not jobs:
                raise EngineUnreachable("engine answered a request that was never made")
            with self._lock:
                del connection.inflight[frame.id]
            self._owner.answered(jobs, outcomes)

    def _ensure_in_time(self, connection: _Connection) -> None:
        with self._lock:
            oldest_s = min((since_s for _, since_s in connection.inflight.values()), default=None)
        if oldest_s is not None and time.monotonic() - oldest_s > REQUEST_DEADLINE_S:
            raise EngineUnreachable("engine holds a request that is too old to succeed")

    def _disconnect(self, connection: _Connection, *, report: bool) -> None:
        with self._lock:
            self._connection = None
            batches = [jobs for jobs, _ in connection.inflight.values()]
        # The writer may be inside a send that nobody reads; closing alone would leave it there.
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)
        connection.outgoing.put(None)
        connection.sock.close()
        if report:
            self._owner.died(batches)


def _write(connection: _Connection) -> None:
    """Send requests in order. A failure ends the connection, which its reader notices and reports."""
    with connection.sock.dup() as sock:
        # An engine at work on earlier batches may leave the socket full for as long as a request may last.
        sock.settimeout(REQUEST_DEADLINE_S)
        while (request := connection.outgoing.get()) is not None:
            try:
                frames.send(sock, request)
            except OSError:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                return
