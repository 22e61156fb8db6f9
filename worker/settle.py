"""What happens to a message after its verdict: store the result, tell the tenant, ack; or dead-letter it; or fetch it.

One asyncio loop in a thread of its own. Every task insists: an outage of store or broker delays it and never drops it,
and the acknowledgement of a message comes strictly after its result is stored. Results travel in parts, because a task
for each costs more than what it does; one that cannot be stored goes on alone. Tasks outlive the loop's thread, so a
replaced thread resumes them.

May import: the standard library, structlog, mrgc.errors, mrgc.wire, worker. Called by the intake.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

import structlog

from mrgc.errors import BodyMissing, MrgcError, QueueUnavailable, StoreUnavailable
from worker.backoff import Backoff
from worker.engine_protocol import Served
from worker.job import Job
from worker.notices import REFUSED, Announcer, Notice
from worker.object_store import NewObject, ObjectStore
from worker.sources.base import ClaimCheck, JobSource, Lease

#: Results that are stored together and acknowledged together.
PART_RESULTS: Final = 64
#: Parts at the store at once: 512 results.
MAX_PARTS: Final = 8
#: Everything else that waits for the store or the broker at once.
MAX_REQUESTS: Final = 64
#: Acknowledgements in one transaction.
MAX_ACKS: Final = 512
#: Longest wait for more acknowledgements of the same tenants, where one request removes several messages.
GATHER_S: Final = 0.25
FIRST_RETRY_S: Final = 0.1
LONGEST_RETRY_S: Final = 15.0
#: A hint is a courtesy; a dead letter does not wait for it longer than this.
HINT_TIMEOUT_S: Final = 5.0

#: How often the loop looks whether it should end.
STOP_POLL_S: Final = 0.05

T = TypeVar("T")

#: A job and its sealed result.
Result = tuple[Job, Served]

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    leases: Sequence[Lease]
    run: Callable[[], Coroutine[Any, Any, None]]
    #: A result that waits for the store.
    unstored_bytes: int = 0


class _Ended(NamedTuple):
    """A job whose result is stored."""

    job: Job
    status: str


#: Jobs that end together, and who waits for their acknowledgement.
_Acks = tuple[Sequence[_Ended], asyncio.Future[None]]


@dataclass(frozen=True, slots=True)
class SettleEvents:
    """Whom the settler tells. Called on its loop; must not block."""

    #: These messages are acknowledged, dead-lettered, or not ours any more.
    settled: Callable[[Sequence[Lease]], None]
    #: The store took or gave an object.
    stored: Callable[[], None]
    #: An outage delays a task.
    delayed: Callable[[Lease, MrgcError], None]
    #: A message was dead-lettered with this code.
    dead_lettered: Callable[[Lease, str], None]


class Settler:
    """Tasks on leases that nobody waits for.

    Args:
        source: where the messages came from.
        store: where results go and claim checks lie.
        events: whom to tell.
        announcer: tells the tenants.
    """

    def __init__(self, source: JobSource, store: ObjectStore, events: SettleEvents, announcer: Announcer) -> None:
        self._source = source
        self._store = store
        self._announcer = announcer
        self._events = events
        self._lock = threading.Lock()
        self._tasks: set[_Task] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._unstored_bytes = 0
        self._acks: asyncio.Queue[_Acks]
        self._parts: asyncio.Semaphore
        self._requests: asyncio.Semaphore

    @property
    def unstored_bytes(self) -> int:
        """Bytes of results that wait for the store."""
        return self._unstored_bytes

    def store(self, results: Sequence[Result]) -> None:
        """Store sealed results, tell their tenants, then acknowledge their messages."""
        for start in range(0, len(results), PART_RESULTS):
            self._store_part(results[start : start + PART_RESULTS], _new_backoff())

    def _store_part(self, part: Sequence[Result], backoff: Backoff, *, after_s: float = 0.0) -> None:
        async def run() -> None:
            await asyncio.sleep(after_s)
            async with self._parts:
                outcomes = await self._store.create([NewObject(job.result_url, served.result) for job, served in part])
            pairs = list(zip(part, outcomes, strict=True))
            for (job, _), error in pairs:
                if error is not None:
                    self._events.delayed(job.lease, error)
            if failed := [result for result, error in pairs if error is not None]:
                # By themselves, so that a result that fails for ever holds back only its like.
                self._store_part(failed, backoff, after_s=backoff.next_s())
            if ended := [_Ended(job, served.status) for (job, served), error in pairs if error is None]:
                self._events.stored()
                await self._insist(ended[0].job.lease, lambda: self._acknowledge(ended))
                self._events.settled([job.lease for job, _ in ended])

        self._start(_Task([job.lease for job, _ in part], run, sum(len(served.result) for _, served in part)))

    def dead_letter(self, lease: Lease, *, code: str, hint_url: str | None = None) -> None:
        """Move a message to the dead letters, with a hint to its tenant beside where the result would be.

        Args:
            lease: the message.
            code: of the error.
            hint_url: name of the hint; None when the header told no job.
        """

        async def run() -> None:
            if hint_url is not None:
                await self._hint(hint_url, code)
            lease.closing = True
            if await self._insist(lease, lambda: asyncio.to_thread(self._source.dead_letter, lease, reason=code)):
                self._events.dead_lettered(lease, code)
                if hint_url is not None:
                    notice = Notice.of(lease.tenant, hint_url, REFUSED)
                    await asyncio.to_thread(self._announcer.announce, [notice])
            self._events.settled([lease])

        self._start(_Task([lease], run))

    def fetch(self, lease: Lease, check: ClaimCheck, then: Callable[[bytes], None]) -> None:
        """Read the sealed job that a claim check names and hand it to `then`; without one, dead-letter the message."""

        async def run() -> None:
            try:
                body = await self._insist(lease, lambda: self._store.read(check.url, size_bytes=check.bytes))
            except BodyMissing as err:
                self.dead_letter(lease, code=err.code)
                return
            self._events.stored()
            then(body)

        self._start(_Task([lease], run))

    def count_death(self, job: Job, then: Callable[[], None]) -> None:
        """Record an engine death of a job that was alone, then go on with `then`."""

        async def run() -> None:
            try:
                await asyncio.to_thread(self._source.count_death, job.lease)
            except QueueUnavailable:
                # This host remembers it; only another host, after our crash, would not.
                job.lease.deaths += 1
            then()

        self._start(_Task([job.lease], run))

    def run(self, stop: threading.Event) -> None:
        """Run tasks until `stop` is set; those that are left stay undone."""
        asyncio.run(self._main(stop))

    async def _main(self, stop: threading.Event) -> None:
        self._acks = asyncio.Queue()
        self._parts = asyncio.Semaphore(MAX_PARTS)
        self._requests = asyncio.Semaphore(MAX_REQUESTS)
        acknowledging = asyncio.create_task(self._send_acks())
        with self._lock:
            self._loop = asyncio.get_running_loop()
            for task in self._tasks:
                self._spawn(task)
        try:
            while not stop.is_set() and not acknowledging.done():
                await asyncio.wait({acknowledging}, timeout=STOP_POLL_S)
        finally:
            with self._lock:
                self._loop = None
        if acknowledging.done():
            acknowledging.result()

    def _start(self, task: _Task) -> None:
        with self._lock:
            self._tasks.add(task)
            self._unstored_bytes += task.unstored_bytes
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._spawn, task)

    def _spawn(self, task: _Task) -> None:
        running = asyncio.ensure_future(task.run())
        running.add_done_callback(lambda done: self._finish(task, done))

    def _finish(self, task: _Task, done: asyncio.Future[None]) -> None:
        if done.cancelled():
            # The loop ended under it; the next one resumes it.
            return
        with self._lock:
            self._tasks.discard(task)
            self._unstored_bytes -= task.unstored_bytes
        if (error := done.exception()) is not None:
            # Nobody knows what is true of these messages now. Letting go of a lease brings it back to somebody.
            for lease in task.leases:
                _log.error("settling failed", tenant=lease.tenant, message_id=lease.message_id, exc_info=error)
            self._events.settled(task.leases)

    async def _insist(self, lease: Lease, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try until there is no outage."""
        backoff = _new_backoff()
        while True:
            try:
                async with self._requests:
                    return await attempt()
            except (StoreUnavailable, QueueUnavailable) as err:
                self._events.delayed(lease, err)
                await asyncio.sleep(backoff.next_s())

    async def _hint(self, url: str, code: str) -> None:
        try:
            async with asyncio.timeout(HINT_TIMEOUT_S):
                (error,) = await self._store.create([NewObject(url, code.encode())])
        except TimeoutError as err:
            error = StoreUnavailable(type(err).__name__)
        if error is not None:
            _log.info("hint not stored", code=code)

    async def _acknowledge(self, ended: Sequence[_Ended]) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._acks.put((ended, done))
        await done

    async def _send_acks(self) -> None:
        """Acknowledge in one call whatever has gathered while the one before was under way."""
        while True:
            waiting = await self._gather_acks()
            error: QueueUnavailable | None = None
            try:
                await asyncio.to_thread(self._end, [each for ended, _ in waiting for each in ended])
            except QueueUnavailable as err:
                error = err
            for _, done in waiting:
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)

    async def _gather_acks(self) -> list[_Acks]:
        """Wait for the first, then a little longer while the broker's requests would not be full."""
        waiting = [await self._acks.get()]
        tenants = [job.tenant for job, _ in waiting[0][0]]
        try:
            async with asyncio.timeout(GATHER_S):
                while len(tenants) < MAX_ACKS:
                    if self._acks.empty() and len(tenants) >= self._source.acks_per_call * len(set(tenants)):
                        break
                    waiting.append(await self._acks.get())
                    tenants += [job.tenant for job, _ in waiting[-1][0]]
        except TimeoutError:
            pass
        return waiting

    def _end(self, ended: Sequence[_Ended]) -> None:
        # Before the acknowledgement: a crash between the two repeats the notices, and after it would lose them.
        self._announcer.announce([Notice.of(job.tenant, job.result_url, status) for job, status in ended])
        for job, _ in ended:
            job.lease.closing = True
        self._source.ack([job.lease for job, _ in ended])


def _new_backoff() -> Backoff:
    return Backoff(base_s=FIRST_RETRY_S, cap_s=LONGEST_RETRY_S)
