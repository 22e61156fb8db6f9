"""The three stages of the engine, each a thread: open and tokenise | forward | seal and reply.

While one batch is in its forward pass the next is opened and the last is sealed. The queues between the stages are
bounded, so a slow stage stops the ones before it, down to the intake's socket: in the middle in tokens, which is what
a device's time and memory go by; at both ends in job batches, whose bytes the frames bound. Batches of the intake
stay whole on both ends; in the middle their rows share token batches.

A defect or a fault of the device ends the process, not the stage: the intake runs the engine's jobs again, in halves,
until the one at fault is alone.

May import: the standard library, structlog, mrgc, worker.engine, worker.engine_protocol. Called by
worker.engine.__main__.
"""

from __future__ import annotations

import queue
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import structlog

from mrgc.errors import MrgcError
from worker.engine.forwarding import Forwarder
from worker.engine.inbox import Inbox
from worker.engine_protocol import HEALTHY, WAITING, Health, Served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker.engine.enclave_client import EnclaveClient
    from worker.engine.jobs import Batch
    from worker.engine.opening import Opener
    from worker.engine.scrubbing import Scrubber
    from worker.engine.sealing import Sealer

#: Batches that wait for a stage beside the one that is in it. One keeps a stage busy; the second hides its refill.
QUEUED_BATCHES: Final = 2
#: How often an idle stage looks after its connection to the enclave.
TEND_S: Final = 0.5

_Queue = queue.Queue["Batch | None"]


class Pipeline:
    """The running engine, from opened batches to replies.

    Args:
        opener: first stage.
        sealer: third stage.
        scrubber: overwrites what the second stage leaves behind.
        budget_tokens: most tokens of one forward pass.
        on_failure: called in a stage that cannot go on; has to end the process.
    """

    def __init__(
        self,
        opener: Opener,
        sealer: Sealer,
        scrubber: Scrubber,
        *,
        budget_tokens: int,
        on_failure: Callable[[], None],
    ) -> None:
        self._opener = opener
        self._sealer = sealer
        self._on_failure = on_failure
        self._scrubber = scrubber
        self._counters = scrubber.counters
        self._forwarder = Forwarder(scrubber)
        self._arrived: _Queue = queue.Queue(QUEUED_BATCHES)
        self._inbox = Inbox(budget_tokens)
        self._finished: _Queue = queue.Queue(QUEUED_BATCHES)
        stages = {"open": self._open_stage, "forward": self._forward_stage, "seal": self._seal_stage}
        # Daemons: a process that has to end must not wait for a stage that is stuck behind a dead one.
        self._threads = [
            threading.Thread(target=self._guarded, args=(stage,), name=name, daemon=True)
            for name, stage in stages.items()
        ]

    def start(self) -> None:
        """Start the stages."""
        for thread in self._threads:
            thread.start()

    def submit(self, batch: Batch) -> None:
        """Hand in a batch; its `reply` is called exactly once. Waits while the stages are full."""
        self._counters.add(batches=1, jobs=len(batch.blobs))
        self._arrived.put(batch)

    def drain(self) -> None:
        """Finish everything submitted and end the stages. Nothing may be submitted from here on."""
        self._arrived.put(None)
        for thread in self._threads:
            thread.join()

    def boot(self) -> str:
        """Boot id of the enclave that jobs are opened at; empty while there is none."""
        return self._opener.client.boot

    def health(self) -> Health:
        """Tell whether a job would be served now."""
        reason = self._opener.client.reason or self._sealer.client.reason
        return Health(WAITING if reason else HEALTHY, reason, self._counters.snapshot())

    def _open_stage(self) -> None:
        for batch in _batches(self._arrived, self._opener.client):
            with self._timed("open_ms"):
                rows = self._opener.open(batch)
            if rows:
                self._inbox.put(rows)
            else:
                self._finished.put(batch)
        self._inbox.close()

    def _forward_stage(self) -> None:
        try:
            while self._forwarder.is_waiting or not self._inbox.is_done:
                for batch in self._forward_next():
                    self._finished.put(batch)
        finally:
            self._scrubber.scrub_for_the_last_time()
        self._finished.put(None)

    def _forward_next(self) -> list[Batch]:
        """Launch the next batch if there is one; otherwise collect what is in flight, or scrub once it is quiet."""
        patience_s = 0.0 if self._forwarder.is_waiting else self._scrubber.policy.patience_s
        taken = self._inbox.take(within_s=patience_s)
        if taken is None and not self._forwarder.is_waiting:
            if patience_s is not None:
                self._scrubber.scrub()
            return []
        with self._timed("forward_ms"):
            if taken is None:
                return self._forwarder.collect()
            self._counters.add(token_batches=1, texts=len(taken.rows), tokens=sum(len(row.ids) for row in taken.rows))
            return self._forwarder.run(taken)

    def _seal_stage(self) -> None:
        for batch in _batches(self._finished, self._sealer.client):
            with self._timed("seal_ms"):
                outcomes = self._sealer.seal(batch)
            for outcome in outcomes:
                self._counters.add(**{_counter(outcome): 1})
            batch.reply(outcomes)

    @contextmanager
    def _timed(self, counter: str) -> Iterator[None]:
        start_s = time.perf_counter()
        yield
        self._counters.add(**{counter: (time.perf_counter() - start_s) * 1_000})

    def _guarded(self, stage: Callable[[], None]) -> None:
        try:
            stage()
        except BaseException as error:  # noqa: BLE001  whatever it is, a pipeline without this stage serves nobody
            structlog.get_logger().critical("stage failed", thread=threading.current_thread().name, exc_info=error)
            self._on_failure()


def _batches(source: _Queue, client: EnclaveClient) -> Iterator[Batch]:
    """Yield batches until the end is announced; look after the stage's connection while there is none."""
    client.tend()
    while True:
        try:
            batch = source.get(timeout=TEND_S)
        except queue.Empty:
            client.tend()
            continue
        if batch is None:
            client.close()
            return
        yield batch


def _counter(outcome: Served | MrgcError) -> str:
    return "jobs_refused" if isinstance(outcome, MrgcError) else f"jobs_{outcome.status}"
