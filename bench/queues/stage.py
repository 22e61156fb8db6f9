"""What stands while the arrangements take turns: Redis, SQS, KMS, enclave, agent, null engine, tenants and jobs.

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
from typing import Any, Final

import boto3
from botocore.config import Config

from bench.queues import tenants
from bench.queues.kombu_queues import STEP_QUEUE, TASK_QUEUE, KombuQueue
from bench.queues.runs import FULL, WARM, Arrangement
from bench.queues.sqs_queue import SENDERS, SqsQueue
from bench.queues.stream_queues import StreamQueues
from bench.queues.tenants import ADMINISTRATOR, Tenant
from infra import parts, provision
from infra.local_enclave import REPOSITORY
from infra.local_nsm import create_pki
from infra.provision import Stack
from infra.supervisor import Part, Supervisor
from mrgc.wire.queue_urls import parse_sqs
from worker.sources.redis_streams import connect

START_S: Final = 60.0
TENANTS: Final = 1_000
#: Jobs of one run, so that each takes some seconds; a multiple of TENANTS, among whom they are shared out.
OUR_JOBS: Final = 30_000
SQS_JOBS: Final = 5_000
STEP_JOBS: Final = 4_000
TASK_JOBS: Final = 1_500
#: Jobs before the clock starts: enough for every lazy import and every buffer.
WARM_JOBS: Final = 256
#: What a call to SQS takes within a region is believed to be about this; it was not measured.
SQS_LATENCY_MS: Final = 6
_KOMBU_DATABASE: Final = 2
_PORTS: Final = ("redis", "sqs", "kms", "agent", "worker")


@dataclass(frozen=True, slots=True)
class Stage:
    """What the runs need."""

    stack: Stack
    #: Processes that every arrangement uses, by name.
    pids: Mapping[str, int]
    tenants: Sequence[Tenant]
    #: Jobs of the first tenant: those before the clock starts, and as many as any arrangement serves.
    warm: Sequence[bytes]
    full: Sequence[bytes]

    @property
    def kombu_url(self) -> str:
        """Broker of the peers: the same server, another database."""
        return self.stack.redis_url("operator", database=_KOMBU_DATABASE)


@contextmanager
def standing(directory: Path, *, count: int = TENANTS) -> Iterator[Stage]:
    """Start all of it, for so many tenants, and stop it at the end."""
    stack = Stack(directory, directory / "models", (ADMINISTRATOR,), _free_ports(), threads=1)
    (directory / "run").mkdir()
    create_pki(directory / "nsm")
    supervisor = Supervisor(directory, cwd=REPOSITORY)
    try:
        _start(supervisor, parts.redis(stack, fsync="everysec"), parts.kms(stack), _sqs(stack))
        # A rewrite of the append-only file would take a processor from some runs and not from others.
        with connect(stack.redis_url("operator")) as client:
            client.config_set("auto-aof-rewrite-percentage", 0)
        everyone = tenants.create(stack, [f"t{number:04}" for number in range(count)])
        engine = replace(parts.engine(stack), command=(sys.executable, "-m", "bench.queues.null_engine"))
        _start(supervisor, parts.enclave(stack), parts.agent(stack), engine)
        pids = json.loads((directory / "pids.json").read_text())
        used = {name: pids[name] for name in ("redis", "enclave", "engine")}
        yield Stage(stack, used, everyone, _seal(everyone[0], WARM_JOBS), _seal(everyone[0], OUR_JOBS))
    finally:
        supervisor.stop()


def ours(stage: Stage) -> Arrangement:
    """The Celery worker with the intake, on Redis."""
    tenant = stage.tenants[0]
    queue = StreamQueues(connect(stage.stack.redis_url("operator")), "one")
    queue.prepare(WARM, {tenant.name: stage.warm})
    queue.prepare(FULL, {tenant.name: stage.full})
    part = _intake(stage.stack, "one", [tenant])
    return Arrangement("one", [part], queue, stage.warm, [(tenant, job) for job in stage.full])


def ours_for_all(stage: Stage) -> Arrangement:
    """The same, with its jobs shared out evenly among all tenants."""
    queue = StreamQueues(connect(stage.stack.redis_url("operator")), "many")
    # Every tenant's data key must be in the enclave's cache before the clock starts.
    warm = {each.name: _seal(each, 1) for each in stage.tenants}
    full = {each.name: _seal(each, OUR_JOBS // len(stage.tenants)) for each in stage.tenants}
    queue.prepare(WARM, warm)
    queue.prepare(FULL, full)
    part = _intake(stage.stack, "many", stage.tenants)
    pairs = [(each, job) for each in stage.tenants for job in full[each.name]]
    return Arrangement("many", [part], queue, [job for jobs in warm.values() for job in jobs], pairs)


def ours_on_sqs(stage: Stage) -> Arrangement:
    """The Celery worker with the intake, on SQS."""
    tenant, jobs = stage.tenants[0], stage.full[:SQS_JOBS]
    stack = replace(stage.stack, tenants=(tenant.name,), queue="sqs")
    provision.queues(stack)
    client = _sqs_client(stack.sqs_endpoint)
    queue = SqsQueue(client, stack.sqs_endpoint, parse_sqs(stack.sqs_url).queue(tenant.name))
    queue.prepare(WARM, stage.warm)
    queue.prepare(FULL, jobs)
    return Arrangement("sqs", [_intake(stack, "sqs", [tenant])], queue, stage.warm, [(tenant, job) for job in jobs])


def task_per_job(stage: Stage, pool: str, concurrency: int) -> Arrangement:
    """Plain Celery, one task per job."""
    part = _peer(stage, "task_per_job", "worker", "--pool", pool, "--concurrency", str(concurrency))
    return _on_kombu(stage, f"task-{pool}", TASK_QUEUE, [part], TASK_JOBS)


def consumer_step(stage: Stage, processes: int) -> Arrangement:
    """Consumer steps of kombu with a batcher behind each."""
    names = [f"worker-{number}" for number in range(processes)]
    workers = [_peer(stage, "consumer_step", name, "--pool", "solo", "--hostname", f"{name}@%h") for name in names]
    return _on_kombu(stage, f"step-{processes}", STEP_QUEUE, workers, STEP_JOBS)


def _intake(stack: Stack, name: str, serving: Sequence[Tenant]) -> Part:
    registry = stack.directory / f"{name}.toml"
    registry.write_text(tenants.registry(serving))
    worker = parts.worker(stack)
    # The peers tell no tenant that a job has ended, so neither does this worker.
    return replace(worker, env={**worker.env, "MRGC_REGISTRY": str(registry), "MRGC_NOTICES": "off"})


def _peer(stage: Stage, module: str, name: str, *options: str) -> Part:
    stack = stage.stack
    env = parts.environment(
        MRGC_BROKER_URL=stage.kombu_url, MRGC_ENCLAVE=stack.enclave, MRGC_TOKEN_FILE=str(stack.token_file)
    )
    command = (
        *(sys.executable, "-m", "celery", "-A", f"bench.queues.{module}", "worker", *options),
        *("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"),
    )
    # It serves as soon as it takes its first message, and the warm-up waits for that.
    return Part(name, command, env, lambda: True)


def _on_kombu(stage: Stage, name: str, queue_name: str, workers: Sequence[Part], count: int) -> Arrangement:
    tenant, jobs = stage.tenants[0], stage.full[:count]
    queue = KombuQueue(stage.kombu_url, connect(stage.kombu_url), queue_name)
    queue.prepare(WARM, stage.warm)
    queue.prepare(FULL, jobs)
    return Arrangement(name, workers, queue, stage.warm, [(tenant, job) for job in jobs])


def _sqs(stack: Stack) -> Part:
    """Describe a local SQS that keeps nothing on the disk and takes as long as a region's for every call."""
    latency = ("--latency-ms", str(SQS_LATENCY_MS))
    command = (sys.executable, "-m", "infra.local_sqs", "--port", str(stack.ports["sqs"]), *latency)
    return replace(parts.sqs(stack), command=command)


def _sqs_client(endpoint: str) -> Any:
    return boto3.client(
        "sqs",
        region_name=provision.REGION,
        endpoint_url=endpoint,
        aws_access_key_id=provision.ANYBODY["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=provision.ANYBODY["AWS_SECRET_ACCESS_KEY"],
        config=Config(max_pool_connections=SENDERS),
    )


def _seal(tenant: Tenant, count: int) -> list[bytes]:
    return [tenant.seal() for _ in range(count)]


def _start(supervisor: Supervisor, *starting: Part) -> None:
    for part in starting:
        supervisor.start(part)
    supervisor.wait_ready(*(part.name for part in starting), deadline_s=START_S, stopping=threading.Event())


def _free_ports() -> dict[str, int]:
    probes = {name: socket.create_server(("127.0.0.1", 0)) for name in _PORTS}
    ports = {name: probe.getsockname()[1] for name, probe in probes.items()}
    for probe in probes.values():
        probe.close()
    return ports
