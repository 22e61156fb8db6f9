"""A real Redis, hosts and engines for the intake's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra import redis_server
from infra.redis_server import RedisServer
from mrgc.wire import sealed
from tests.access.users import add_users, login
from tests.intake.peer_engine import PeerEngine
from tests.intake.sealing import REGISTRY, stored
from tests.waiting import until
from worker.composition import build_intake
from worker.intake import Intake
from worker.settings import WorkerSettings
from worker.sources.redis_admin import RedisAdmin
from worker.sources.redis_streams import Client, connect


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One durable server, shared by the tests of the session."""
    server = redis_server.start(tmp_path_factory.mktemp("redis"), fsync="everysec")
    yield server
    server.stop()


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    """The shared server, emptied, with the users that the product's processes have."""
    with connect(shared_server.url()) as client:
        client.flushall()
    add_users(shared_server)
    return shared_server


@pytest.fixture
def client(server: RedisServer) -> Iterator[Client]:
    """A plain client: the tenant's side, and the test's own view."""
    with connect(server.url()) as client:
        yield client


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[PeerEngine]:
    """An engine of the test's own."""
    engine = PeerEngine(tmp_path / "engine.sock")
    yield engine
    engine.close()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Directory of the result objects."""
    directory = tmp_path / "results"
    directory.mkdir()
    return directory


@pytest.fixture
def registry_file(tmp_path: Path) -> Path:
    """A registry of two tenants."""
    file = tmp_path / "tenants.toml"
    file.write_text(REGISTRY)
    return file


@dataclass(slots=True)
class Host:
    """One GPU host's intake under test, with everything around it real but the engine."""

    intake: Intake
    client: Client
    results: Path

    def send(self, *jobs: bytes) -> None:
        """Append jobs to the queue of the tenant that their headers name."""
        for job in jobs:
            self.client.xadd(f"q:{sealed.parse_job(job).header.tenant}", {"job": job})

    def wait_stored(self, *jobs: bytes, within_s: float = 10.0) -> None:
        """Wait until every job has its result and has left the queue."""
        until(lambda: all(stored(self.results, job) for job in jobs), within_s=within_s, what="results are stored")
        self.wait_acked()

    def wait_acked(self, tenant: str = "acme") -> None:
        """Wait until the tenant's queue is empty."""
        until(lambda: self.client.xlen(f"q:{tenant}") == 0, within_s=10, what="the queue is empty")

    def leased(self, tenant: str = "acme") -> int:
        """Messages of a tenant that somebody leases; 0 before the group was made."""
        return RedisAdmin(self.client).backlog([tenant])[tenant].pending

    def dead_letters(self, tenant: str = "acme") -> list[tuple[str, bytes]]:
        """Reasons and jobs of a tenant's dead letters."""
        letters = self.client.xrange(f"dead:{tenant}")
        return [(letter[b"reason"].decode(), letter.get(b"job", b"")) for _, letter in letters]


StartHost = Callable[..., Host]


@pytest.fixture
def start_host(
    server: RedisServer, engine: PeerEngine, results: Path, registry_file: Path, client: Client
) -> Iterator[StartHost]:
    """Starts hosts on the same queues, engine and results, and ends them without a drain."""
    hosts: list[Host] = []

    def start(**settings: Any) -> Host:
        values: dict[str, Any] = {
            "queue_url": server.url(login=login("worker")),
            "broker_url": server.broker_url(login=login("control")),
            "results_url": f"file://{results}/",
            "registry": registry_file,
            "engines": (engine.address,),
            "lease_s": 1.0,
        }
        intake = build_intake(WorkerSettings(**(values | settings)))
        intake.start()
        hosts.append(Host(intake, client, results))
        until(lambda: not intake.readiness(), within_s=10, what="the intake is ready")
        return hosts[-1]

    yield start
    for host in hosts:
        host.intake.drain(within_s=0)
