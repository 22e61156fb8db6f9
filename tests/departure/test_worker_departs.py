"""Real workers under load on instances that go away: everything ends in time, once, and the hook is answered last."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.departure.aws import SPOT, AutoScaling, Imds
from tests.intake.peer_engine import PeerEngine, result_of
from tests.intake.sealing import object_name, seal, stored
from tests.tasks.conftest import StartWorker
from tests.waiting import until
from worker.departure_policy import SPOT_PATH, STATE_PATH
from worker.sources.redis_streams import Client

#: What is left of an instance whose hook or notice has been seen.
EXIT_S = 30.0


class Instance(NamedTuple):
    """The instance of a worker, as far as AWS tells and hears of it."""

    imds: Imds
    scaling: AutoScaling

    @property
    def environ(self) -> dict[str, str]:
        """What a worker on it is told."""
        return {
            "MRGC_IMDS": self.imds.url,
            "MRGC_AUTOSCALING_GROUP": "fleet",
            "MRGC_LIFECYCLE_HOOK": "drain",
            "AWS_ENDPOINT_URL_AUTO_SCALING": self.scaling.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }


@pytest.fixture
def instance() -> Iterator[Instance]:
    """An instance of the test's own."""
    instance = Instance(Imds(), AutoScaling())
    yield instance
    instance.imds.close()
    instance.scaling.close()


def another_port() -> str:
    """An address for a second worker's pages."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


def ensure_each_once(results: Path, engine: PeerEngine, jobs: list[bytes]) -> None:
    """Demand of every job one right result, no other object, and one run."""
    assert [stored(results, job) for job in jobs] == [result_of(job) for job in jobs]
    assert {path.relative_to(results).as_posix() for path in results.rglob("*.mrgc")} == set(map(object_name, jobs))
    assert set(Counter(job for batch in engine.batches for job in batch).values()) == {1}


def test_a_spot_notice_under_load_ends_the_worker_in_time(
    start_worker: StartWorker, client: Client, results: Path, engine: PeerEngine, instance: Instance
) -> None:
    """It finishes what the engine has and takes no more; another worker serves the rest; nothing is doubled."""
    leaving = start_worker(MRGC_MAX_BATCH_JOBS="8", MRGC_LEASE_S="600", **instance.environ)
    jobs = [seal() for _ in range(400)]
    for job in jobs[:200]:
        client.xadd("q:acme", {"job": job})
    until(lambda: len(list(results.rglob("*.mrgc"))) > 20, within_s=20, what="it serves")
    instance.imds.values[SPOT_PATH] = SPOT
    began_s = time.monotonic()
    for job in jobs[200:]:
        client.xadd("q:acme", {"job": job})
    assert leaving.process.wait(EXIT_S) == 0
    assert time.monotonic() - began_s < EXIT_S
    assert "instance is going away" in leaving.log
    start_worker(MRGC_MAX_BATCH_JOBS="8", MRGC_LEASE_S="600", MRGC_WORKER_HTTP=another_port())
    until(lambda: client.xlen("q:acme") == 0, within_s=30, what="the queue is empty")
    ensure_each_once(results, engine, jobs)
    assert client.xlen("dead:acme") == 0
    assert instance.scaling.completed == []


def test_a_lifecycle_hook_is_answered_when_nothing_is_held_any_more(
    start_worker: StartWorker, client: Client, results: Path, engine: PeerEngine, instance: Instance
) -> None:
    """With the engine busy no answer is given; it comes after the last result, and then the worker ends."""
    worker = start_worker(**instance.environ)
    engine.may_answer.clear()
    job = seal()
    client.xadd("q:acme", {"job": job})
    until(lambda: engine.batches, within_s=10, what="the engine has the job")
    instance.imds.values[STATE_PATH] = "Terminated"
    until(lambda: "draining" in worker.page("/readyz")[1], within_s=15, what="it drains")
    assert instance.scaling.completed == []
    engine.may_answer.set()
    assert worker.process.wait(EXIT_S) == 0
    assert [action["LifecycleHookName"] for action in instance.scaling.completed] == ["drain"]
    assert client.xlen("q:acme") == 0
    ensure_each_once(results, engine, [job])


def test_a_stuck_engine_does_not_keep_the_hook_waiting(
    start_worker: StartWorker, client: Client, results: Path, engine: PeerEngine, instance: Instance
) -> None:
    """At the end of MRGC_DRAIN_S the rest is handed back, the hook is answered, and the next worker gets the job."""
    worker = start_worker(MRGC_DRAIN_S="0.5", MRGC_LEASE_S="600", **instance.environ)
    engine.may_answer.clear()
    job = seal()
    client.xadd("q:acme", {"job": job})
    until(lambda: engine.batches, within_s=10, what="the engine has the job")
    instance.imds.values[STATE_PATH] = "Terminated"
    assert worker.process.wait(EXIT_S) == 0
    assert len(instance.scaling.completed) == 1
    engine.may_answer.set()
    start_worker(MRGC_LEASE_S="600", MRGC_WORKER_HTTP=another_port())
    until(lambda: stored(results, job), within_s=20, what="another serves it without waiting for the lease")


def test_a_worker_that_is_started_on_a_leaving_instance_takes_nothing(
    start_worker: StartWorker, client: Client, engine: PeerEngine, instance: Instance
) -> None:
    """Whatever starts it again does not know; it answers the hook, stays idle, says why, and still ends on SIGTERM."""
    instance.imds.values[STATE_PATH] = "Terminated"
    job = seal()
    client.xadd("q:acme", {"job": job})
    worker = start_worker(ready=False, **instance.environ)
    until(lambda: "draining" in worker.page("/readyz")[1], within_s=30, what="it says that it drains")
    until(lambda: instance.scaling.completed, within_s=10, what="the hook is answered")
    assert engine.batches == []
    assert client.xlen("q:acme") == 1
    assert worker.process.poll() is None
    assert worker.end() == 0


def test_a_dead_metadata_service_keeps_no_worker_from_its_work(
    start_worker: StartWorker, client: Client, results: Path, instance: Instance
) -> None:
    """Silent from the start and gone later, it is named in the log once, and jobs are served all the time."""
    instance.imds.answers.clear()
    worker = start_worker(**instance.environ)
    first, second = seal(), seal()
    client.xadd("q:acme", {"job": first})
    until(lambda: stored(results, first), within_s=20, what="it serves while nothing answers")
    instance.imds.close()
    client.xadd("q:acme", {"job": second})
    until(lambda: stored(results, second), within_s=20, what="it serves while nothing listens")
    assert worker.log.count("instance metadata is silent") == 1
    assert worker.end() == 0
