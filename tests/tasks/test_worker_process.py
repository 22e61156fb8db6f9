"""The real command, `python -m celery -A tasks worker`, and what signals and outages do to it."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from celery import Celery

from infra import redis_server
from infra.redis_server import RedisServer
from tests.access.users import add_users
from tests.intake.peer_engine import Outcomes, PeerEngine, result_of, serve_all
from tests.intake.sealing import object_name, seal, stored
from tests.tasks.conftest import REPOSITORY, StartWorker
from tests.waiting import until
from worker.sources.redis_streams import Client


def send(client: Client, *jobs: bytes, tenant: str = "acme") -> None:
    """Append jobs as a tenant does."""
    for job in jobs:
        client.xadd(f"q:{tenant}", {"job": job})


def wait_stored(client: Client, results: Path, jobs: list[bytes]) -> None:
    """Wait until every job has its result and has left the queue."""
    until(lambda: client.xlen("q:acme") == 0, within_s=30, what="the queue is empty")
    assert [stored(results, job) for job in jobs] == [result_of(job) for job in jobs]


def wait_some_stored(results: Path, least: int) -> None:
    """Wait until that many results are stored."""
    until(lambda: len(list(results.rglob("*.mrgc"))) >= least, within_s=20, what=f"{least} results are stored")


def test_the_worker_serves_tells_how_it_does_and_drains(
    start_worker: StartWorker, client: Client, results: Path, engine: PeerEngine, environ: dict[str, str]
) -> None:
    """Jobs are served; pages and remote control answer; SIGTERM finishes what the engine has and hands nothing back."""
    worker = start_worker()
    jobs = [seal() for _ in range(50)]
    send(client, *jobs)
    wait_stored(client, results, jobs)
    assert worker.page("/healthz")[0] == 200
    assert worker.page("/nothing")[0] == 404
    status, text = worker.page("/metrics")
    assert status == 200
    assert 'mrgc_jobs_served_total{status="ok",tenant="acme"} 50.0' in text
    assert "mrgc_ready 1.0" in text
    inspect = [sys.executable, "-m", "celery", "-A", "tasks", "inspect", "mrgc_health", "--json"]
    answers = json.loads(subprocess.check_output(inspect, cwd=REPOSITORY, env=environ, timeout=30))
    assert list(answers.values()) == [{"ready": True, "reasons": []}]

    engine.may_answer.clear()
    last = seal()
    send(client, last)
    until(lambda: [last] in engine.batches, within_s=10, what="the engine has the last job")
    worker.process.send_signal(signal.SIGTERM)
    until(lambda: "draining" in worker.page("/readyz")[1], within_s=10, what="the worker drains")
    late = seal()
    send(client, late)
    engine.may_answer.set()
    assert worker.process.wait(30) == 0
    assert stored(results, last) == result_of(last)
    assert stored(results, late) is None
    assert client.xlen("q:acme") == 1
    # A receive that was under way when the signal came may have taken it; then it was handed back.
    assert {entry["name"] for entry in client.xpending("q:acme", "gpu")["consumers"]} <= {b"returned"}


def test_sigterm_with_a_stuck_engine_hands_back_within_its_time(
    start_worker: StartWorker, client: Client, results: Path, engine: PeerEngine
) -> None:
    """A drain ends at MRGC_DRAIN_S, and the next worker gets the messages without waiting for the lease."""
    worker = start_worker(MRGC_DRAIN_S="0.5", MRGC_LEASE_S="600")
    engine.may_answer.clear()
    jobs = [seal() for _ in range(5)]
    send(client, *jobs)
    until(lambda: engine.batches, within_s=10, what="the engine has a batch")
    began = time.monotonic()
    assert worker.end(signal.SIGTERM) == 0
    assert time.monotonic() - began < 15
    engine.may_answer.set()
    start_worker(MRGC_LEASE_S="600")
    wait_stored(client, results, jobs)


def test_sigkill_in_the_middle_loses_nothing_and_changes_no_result(
    start_worker: StartWorker, client: Client, results: Path
) -> None:
    """Killed twice in 300 jobs, every job ends with one result, and no stored result is ever touched again."""
    jobs = [seal() for _ in range(300)]
    worker = start_worker(MRGC_MAX_BATCH_JOBS="8")
    send(client, *jobs)
    first: dict[Path, tuple[int, int]] = {}
    for survivors in (40, 120):
        wait_some_stored(results, survivors)
        worker.process.kill()
        worker.process.wait()
        for path in results.rglob("*.mrgc"):
            first[path] = path.stat().st_ino, path.stat().st_mtime_ns
        worker = start_worker(MRGC_MAX_BATCH_JOBS="8")
    wait_stored(client, results, jobs)
    assert {path.relative_to(results).as_posix() for path in results.rglob("*.mrgc")} == set(map(object_name, jobs))
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in first} == first
    assert client.xlen("dead:acme") == 0
    assert client.exists("deaths:acme") == 0


def test_a_broker_restart_is_survived(
    start_worker: StartWorker, server: RedisServer, client: Client, results: Path, engine: PeerEngine
) -> None:
    """While the broker is away the worker lives, says so and keeps its results; afterwards it goes on by itself."""
    slow: list[bool] = []

    def answer(batch: list[bytes]) -> Outcomes:
        slow.append(True)
        return serve_all(batch)

    engine.answer = answer
    worker = start_worker(MRGC_MAX_BATCH_JOBS="4")
    jobs = [seal() for _ in range(40)]
    engine.may_answer.clear()
    send(client, *jobs)
    until(lambda: len(engine.batches) == 3, within_s=10, what="the engine is full")
    server.kill()
    engine.may_answer.set()
    until(lambda: "queue_unavailable" in worker.page("/readyz")[1], within_s=20, what="the outage is told")
    revived = redis_server.start(server.directory, fsync="everysec")
    add_users(revived)
    try:
        wait_stored(client, results, jobs)
        worker.wait_ready()
        assert worker.end(signal.SIGTERM) == 0
    finally:
        revived.stop()


def test_a_worker_without_its_broker_still_ends(start_worker: StartWorker, server: RedisServer) -> None:
    """SIGTERM ends the worker promptly even when Redis is gone."""
    worker = start_worker()
    server.kill()
    began = time.monotonic()
    worker.end(signal.SIGTERM)
    assert time.monotonic() - began < 20


def test_a_wrong_setting_ends_the_worker_with_its_name(start_worker: StartWorker) -> None:
    """A malformed setting is named in the log, its value is not, and no message is taken."""
    worker = start_worker(ready=False, MRGC_LEASE_S="soon, please")
    assert worker.process.wait(30) != 0
    assert "MRGC_LEASE_S" in worker.log
    assert "soon, please" not in worker.log


def test_the_log_is_json_and_holds_no_job(start_worker: StartWorker, client: Client, results: Path) -> None:
    """Statement 8: what is logged is JSON with an event, and no line holds a byte of a sealed job."""
    worker = start_worker("--loglevel", "DEBUG")
    jobs = [seal() for _ in range(3)]
    send(client, *jobs)
    client.xadd("q:acme", {"job": b"canary-of-a-broken-job"})
    until(lambda: client.xlen("dead:acme") == 1, within_s=10, what="the broken job is dead-lettered")
    wait_stored(client, results, jobs)
    worker.end(signal.SIGTERM)
    # Celery prints its banner and its farewell beside the log.
    lines = [json.loads(line) for line in worker.log.splitlines() if line.startswith("{")]
    assert {"intake started", "dead letter", "drained"} <= {line["event"] for line in lines}
    assert "canary" not in worker.log
    assert not any(base64.b64encode(job[:60]).decode()[:40] in worker.log for job in jobs)


def test_an_edge_worker_forwards_sealed_jobs(
    start_worker: StartWorker, client: Client, environ: dict[str, str]
) -> None:
    """`tasks.infer` puts a sealed job into its tenant's queue; an edge worker has no intake and needs no engine."""
    edge = {name: value for name, value in environ.items() if name not in ("MRGC_ENGINES", "MRGC_RESULTS_URL")}
    environ.clear()
    environ.update(edge)
    worker = start_worker("-Q", "infer", ready=False)
    job, foreign = seal(), seal("initech")
    with Celery(broker=environ["MRGC_BROKER_URL"]) as producer:
        producer.conf.broker_transport_options = {"global_keyprefix": "ctl:"}
        for body in (base64.b64encode(foreign).decode(), "garbage", 5, base64.b64encode(job).decode()):
            producer.send_task("tasks.infer", args=[body], queue="infer")
    until(lambda: client.xlen("q:acme") == 1, within_s=30, what="the job is in the queue")
    ((_, fields),) = client.xrange("q:acme")
    assert fields == {b"job": job}
    assert client.exists("q:initech") == 0
    assert worker.page("/healthz")[0] == 0
    worker.end(signal.SIGTERM)
