"""Jobs of two tenants whose right answers are known: sealed, sent in spite of outages, and judged at the end."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from mrgc.client import Client
from mrgc.errors import KeyBusyError, QueueUnavailable
from mrgc.payloads import DEFAULT_LIFETIME_S, JobOptions
from mrgc.submitted import SubmittedJob
from mrgc.wire.sealed import parse_job
from tests.waiting import until
from worker.models import registry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tests.faults.stack import FaultStack

TENANTS: Final = ("acme", "globex")
#: Inputs of one job: with the small model and one thread some milliseconds of work.
INPUTS: Final = 6
#: Distinct texts. Jobs draw from them, so that every result is compared with an answer computed once, and no two
#: jobs are likely to have the same.
POOL: Final = [f"text number {index} with {'more words ' * (index % 40)}to read" for index in range(240)]
#: A broker that was killed is back within this time.
SEND_S: Final = 60.0
#: How often a feeder looks whether more is needed.
FEED_S: Final = 0.1


class Sent(NamedTuple):
    """One job as its tenant sent it."""

    job: SubmittedJob
    sealed: bytes
    #: Indexes into POOL.
    texts: tuple[int, ...]


@cache
def right_answers(models: Path) -> NDArray[np.float32]:
    """Compute the embedding of every text of POOL, float32 (len(POOL), D), each alone in its batch."""
    (model,) = registry.load(models, device="cpu", dtype="auto")
    rows = []
    for tokens in model.tokenise(POOL):
        assert not isinstance(tokens, Exception)
        rows.append(np.asarray(model.forward([tokens.ids]))[0])
    return np.stack(rows)


class Workload:
    """The jobs of one test. Used by one thread at a time; a feeder is one."""

    def __init__(self, stack: FaultStack, *, seed: int = 7) -> None:
        self.stack = stack
        self.sent: dict[bytes, Sent] = {}
        self._random = random.Random(seed)
        self._clients = {tenant: stack.client(tenant) for tenant in TENANTS}

    def client(self, tenant: str) -> Client:
        """The tenant's client that sealed its jobs."""
        return self._clients[tenant]

    def add(self, count: int, *, tenant: str | None = None, lifetime_s: int = DEFAULT_LIFETIME_S) -> list[Sent]:
        """Seal and send jobs, until the broker has confirmed every one."""
        jobs = [self.seal(tenant or TENANTS[index % len(TENANTS)], lifetime_s=lifetime_s) for index in range(count)]
        self.send(jobs)
        return jobs

    def seal(self, tenant: str, *, lifetime_s: int = DEFAULT_LIFETIME_S, texts: Sequence[str] | None = None) -> Sent:
        """Seal one job of texts from the pool, or of the given ones; it is not counted before it is sent."""
        drawn = tuple(self._random.choices(range(len(POOL)), k=INPUTS))
        client = self._clients[tenant]
        options = JobOptions(client.settings.model, lifetime_s=lifetime_s, truncate=True)
        chosen = list(texts) if texts is not None else [POOL[index] for index in drawn]

        def attempt() -> bytes:
            try:
                return client.seal(chosen, options)
            except KeyBusyError:
                return b""

        sealed = until(attempt, within_s=SEND_S, what="KMS gives a data key")
        return Sent(SubmittedJob.of(parse_job(sealed)), sealed, drawn if texts is None else ())

    def send(self, jobs: Sequence[Sent]) -> None:
        """Send jobs; what the broker did not confirm is sent again, so that some may be in the queue twice."""
        for tenant, client in self._clients.items():
            sealed = [each.sealed for each in jobs if each.job.tenant == tenant]

            def attempt(client: Client = client, sealed: Sequence[bytes] = sealed) -> bool:
                try:
                    return list(client.send(sealed)) is not None
                except QueueUnavailable:
                    return False

            until(attempt, within_s=SEND_S, what="the broker takes the jobs")
        self.sent |= {each.job.job: each for each in jobs}

    @staticmethod
    def now_s() -> float:
        """Unix seconds by the tenants' clock."""
        return time.time()

    def outstanding(self) -> int:
        """Jobs that have no result yet."""
        stored = {name.split("/")[1] for name in self.stack.results.names()}
        return sum(job.hex() not in stored for job in list(self.sent))

    @contextmanager
    def feeding(self, *, backlog: int) -> Iterator[None]:
        """Keep at least `backlog` jobs outstanding while inside the block."""
        ending, failures = threading.Event(), []

        def feed() -> None:
            try:
                while not ending.wait(FEED_S):
                    missing = backlog - self.outstanding()
                    if missing > 0:
                        self.add(missing + backlog // 4)
            except BaseException as error:  # noqa: BLE001  raised in the test's own thread below
                failures.append(error)

        feeder = threading.Thread(target=feed, name="feeder", daemon=True)
        feeder.start()
        try:
            until(lambda: len(self.sent) >= backlog or failures, within_s=SEND_S, what="the first jobs are sent")
            yield
        finally:
            ending.set()
            feeder.join()
        if failures:
            raise failures[0]

    def close(self) -> None:
        """Close the clients."""
        for client in self._clients.values():
            client.close()
