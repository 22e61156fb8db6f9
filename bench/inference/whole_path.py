"""The whole path, queue → open → infer → seal → store → acknowledge, timed from a full queue to an empty one.

Jobs are sealed before the clock starts: that is the tenant's work. Everything after is timed: the ends too, in which
the engine still waits for its first batch or has nothing left but results to seal. May import: everything.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from bench.inference.stage import TENANT, Stage
from mrgc.payloads import JobOptions
from mrgc.submitted import SubmittedJob
from mrgc.wire.headers import JSON_TYPE
from mrgc.wire.sealed import parse_job
from worker.models.base import Embeddings

POLL_S: Final = 0.01
LIFETIME_S: Final = 7_200
#: Copies a prepared list to the tenant's stream at once, in the server.
_FILL: Final = """
for _, job in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do redis.call('XADD', KEYS[2], '*', 'job', job) end
redis.call('DEL', KEYS[1])
"""


@dataclass(frozen=True, slots=True)
class Run:
    """What one run measured."""

    texts: int
    wall_s: float
    #: Processor time by process, microseconds per text.
    cpu_us: Mapping[str, float]
    #: Most bytes in memory by process, at the end of the run.
    resident_bytes: Mapping[str, int] = field(repr=False)
    #: float32 (texts, D), as the tenant opened them; empty if they were not asked for.
    embeddings: Embeddings = field(repr=False)

    @property
    def texts_per_s(self) -> float:
        """From a full queue to an empty one."""
        return self.texts / self.wall_s


class WholePath:
    """Serves the same texts again and again, in fresh jobs each time.

    Args:
        stage: the standing service.
        texts: what to embed.
    """

    def __init__(self, stage: Stage, texts: Sequence[str]) -> None:
        self._stage = stage
        self._texts = texts
        self._stream = f"q:{TENANT}"

    def run(self, texts_per_job: int, *, accept: str = JSON_TYPE, opened: bool = False, give_up_s: float) -> Run:
        """Seal, fill the queue, and time until it is drained.

        Args:
            texts_per_job: how the texts are cut into jobs.
            accept: content type of the results; application/json is what a tenant gets who asks for nothing.
            opened: open every result afterwards and return the embeddings.
            give_up_s: the longest the queue may take to drain.

        Raises:
            AssertionError: jobs were left, or results are missing or not ok.
        """
        jobs = self._sealed(texts_per_job, accept)
        stored = self._count()
        self._prepare(jobs)
        before, start_s = self._stage.cpu_s(), time.perf_counter()
        self._stage.redis.eval(_FILL, 2, "bench:prepared", self._stream)
        while self._stage.redis.xlen(self._stream):
            assert time.perf_counter() - start_s < give_up_s, f"the queue does not drain\n{self._stage.logs()}"
            time.sleep(POLL_S)
        wall_s, after = time.perf_counter() - start_s, self._stage.cpu_s()
        assert self._count() == stored + len(jobs), f"results are missing\n{self._stage.logs()}"
        texts = len(self._texts)
        cpu_us = {name: (after[name] - before[name]) / texts * 1e6 for name in after}
        embeddings = self._opened(jobs) if opened else np.empty((0, 0), dtype=np.float32)
        return Run(texts, wall_s, cpu_us, self._stage.resident_bytes(), embeddings)

    def _sealed(self, texts_per_job: int, accept: str) -> list[bytes]:
        client = self._stage.client
        options = JobOptions(client.settings.model, truncate=True, accept=accept, lifetime_s=LIFETIME_S)
        cuts = range(0, len(self._texts), texts_per_job)
        return [client.seal(self._texts[start : start + texts_per_job], options) for start in cuts]

    def _prepare(self, jobs: Sequence[bytes]) -> None:
        with self._stage.redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.rpush("bench:prepared", job)
            pipe.execute()

    def _opened(self, jobs: Sequence[bytes]) -> Embeddings:
        client = self._stage.client
        submitted = [SubmittedJob.of(parse_job(job)) for job in jobs]
        rows = []
        for job, data in client.fetch_many(submitted):
            assert data is not None
            rows += client.open(data, job=job).json()["embeddings"]
        return np.array(rows, dtype=np.float32)

    def _count(self) -> int:
        return sum(1 for _ in self._stage.results.rglob("*.mrgc"))
