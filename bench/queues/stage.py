"""Everything that stands while the arrangements take turns: Redis, KMS, enclave, agent, null engine, tenants and jobs.

May import: everything.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench.queues import tenants
from bench.queues.kombu_queues import STEP_QUEUE, TASK_QUEUE, KombuQueue
from bench.queues.runs import FULL, WARM, Arrangement
from bench.queues.stream_queues import StreamQueues
from bench.queues.tenants import ADMINISTRATOR, Tenant
from infra import parts
from infra.local_enclave import REPOSITORY
from infra.local_nsm import create_pki
from infra.provision import Stack
from infra.supervisor import Part, Supervisor
from worker.sources.redis_streams import connect

START_S: Final = 60.0
TENANTS: Final = 1_000
#: Jobs of one run, so that each takes some seconds; a multiple of TENANTS where they are shared out.
OUR_JOBS: Final = 10_000
STEP_JOBS: Final = 5_000
TASK_JOBS: Final = 1_500
#: Jobs before the clock starts: enough for every lazy import and every buffer.
WARM_JOBS: Final = 256
#: More threads only wait for one interpreter; fewer leave it idle while the disk flushes.
TASK_THREADS: Final = 4
_KOMBU_DATABASE: Final = 2


@dataclass(frozen=True, slots=True)
class Stage:
    """What the runs need."""

    stack: Stack
    #: Processes that every arrangement uses, by name.
    pids: Mapping[str, int]
    tenants: Sequence[Tenant]

    @property
    def kombu_url(self) -> str:
        """Broker of the peers: the same server, another database."""
        return self.stack.redis_url("operator", database=_KOMBU_DATABASE)


@contextmanager
def standing(directory: Path) -> Iterator[Stage]:
    """Start all of it, and stop it at the end."""
    stack = Stack(directory, directory / "models", (ADMINISTRATOR,), _free_ports(), threads=1)
    (directory / "run").mkdir()
    create_pki(directory / "nsm")
    supervisor = Supervisor(directory, cwd=REPOSITORY)
    try:
        _start(supervisor, parts.redis(stack, fsync="everysec"), parts.kms(stack))
        everyone = tenants.create(stack, [f"t{number:04}" for number in range(TENANTS)])
        engine = replace(parts.engine(stack), command=(sys.executable, "-m", "bench.queues.null_engine"))
        _start(supervisor, parts.enclave(stack), parts.agent(stack), engine)
        pids = json.loads((directory / "pids.json").read_text())
        used = {name: pids[name] for name in ("redis", "enclave", "engine")}
        yield Stage(stack, used, everyone)
    finally:
        supervisor.stop()


def ours(stage: Stage, name: str, serving: Sequence[Tenant]) -> Arrangement:
    """The Celery worker with the intake, its jobs shared out evenly among some tenants."""
    registry = stage.stack.directory / f"{name}.toml"
    registry.write_text(tenants.registry(serving))
    worker = parts.worker(stage.stack)
    # The peers tell no tenant that a job has ended, so neither does this worker.
    part = replace(worker, env={**worker.env, "MRGC_REGISTRY": str(registry), "MRGC_NOTICES": "off"})
    queue = StreamQueues(connect(stage.stack.redis_url("operator")), name)
    # Every tenant's data key must be in the enclave's cache before the clock starts.
    warm = {each.name: _seal(each, max(1, WARM_JOBS // len(serving))) for each in serving}
    full = {each.name: _seal(each, OUR_JOBS // len(serving)) for each in serving}
    queue.prepare(WARM, warm)
    queue.prepare(FULL, full)
    pairs = [(each, job) for each in serving for job in full[each.name]]
    return Arrangement(name, part, queue, [job for jobs in warm.values() for job in jobs], pairs)


def task_per_job(stage: Stage) -> Arrangement:
    """Plain Celery, one task per job."""
    options = ("--pool", "threads", "--concurrency", str(TASK_THREADS))
    return _peer(stage, "task_per_job", TASK_QUEUE, options, TASK_JOBS)


def consumer_step(stage: Stage) -> Arrangement:
    """A consumer step of kombu with a batcher behind it."""
    return _peer(stage, "consumer_step", STEP_QUEUE, ("--pool", "solo"), STEP_JOBS)


def _peer(stage: Stage, module: str, queue_name: str, options: Sequence[str], jobs: int) -> Arrangement:
    tenant, stack = stage.tenants[0], stage.stack
    env = parts.environment(
        MRGC_BROKER_URL=stage.kombu_url, MRGC_ENCLAVE=stack.enclave, MRGC_TOKEN_FILE=str(stack.token_file)
    )
    command = (
        *(sys.executable, "-m", "celery", "-A", f"bench.queues.{module}", "worker", *options),
        *("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"),
    )
    queue = KombuQueue(stage.kombu_url, connect(stage.kombu_url), queue_name)
    warm, full = _seal(tenant, WARM_JOBS), _seal(tenant, jobs)
    queue.prepare(WARM, warm)
    queue.prepare(FULL, full)
    # It serves as soon as it takes its first message, and the warm-up waits for that.
    part = Part("worker", command, env, lambda: True)
    return Arrangement(module, part, queue, warm, [(tenant, job) for job in full])


def _seal(tenant: Tenant, count: int) -> list[bytes]:
    return [tenant.seal() for _ in range(count)]


def _start(supervisor: Supervisor, *starting: Part) -> None:
    for part in starting:
        supervisor.start(part)
    supervisor.wait_ready(*(part.name for part in starting), deadline_s=START_S, stopping=threading.Event())


def _free_ports() -> dict[str, int]:
    probes = {name: socket.create_server(("127.0.0.1", 0)) for name in ("redis", "kms", "agent", "worker")}
    ports = {name: probe.getsockname()[1] for name, probe in probes.items()}
    for probe in probes.values():
        probe.close()
    return ports
