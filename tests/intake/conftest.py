"""Real servers for the intake's tests: every redis-server that this machine has, each started once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra import redis_server
from infra.redis_server import RedisServer
from worker.sources.redis_streams import Client, RedisStreams, connect

LEASE_S = 30.0

SERVERS = redis_server.find_servers()


@pytest.fixture(scope="session", params=sorted(SERVERS))
def shared_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One durable server per redis-server binary, shared by the tests of the session."""
    server = redis_server.start(tmp_path_factory.mktemp("redis"), binary=SERVERS[request.param], fsync="everysec")
    yield server
    server.stop()


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    """The shared server, emptied."""
    with connect(shared_server.url()) as client:
        client.flushall()
    return shared_server


@pytest.fixture
def client(server: RedisServer) -> Iterator[Client]:
    """A plain client: the tenant's side, and the test's own view."""
    with connect(server.url()) as client:
        yield client


MakeSource = Callable[..., RedisStreams]


@pytest.fixture
def make_source(server: RedisServer) -> Iterator[MakeSource]:
    """Makes sources as different hosts would, and closes them."""
    made: list[RedisStreams] = []

    def make(consumer: str = "host-1", *, lease_s: float = LEASE_S, **kwargs: Callable[[], float]) -> RedisStreams:
        source = RedisStreams(connect(server.url()), consumer=consumer, lease_s=lease_s, **kwargs)
        made.append(source)
        return source

    yield make
    for source in made:
        source.close()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that the test may kill."""
    server = redis_server.start(tmp_path / "redis")
    yield server
    server.stop()
