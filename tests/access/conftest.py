"""Every redis-server of this machine, with the users that `python -m worker.access redis` makes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra import redis_server
from infra.redis_server import RedisServer
from tests.intake.sealing import REGISTRY
from worker import access
from worker.sources.redis_streams import connect

SERVERS = redis_server.find_servers()


@dataclass(slots=True)
class GuardedServer:
    """A server that knows the users of two tenants, and their passwords."""

    server: RedisServer
    passwords: Path
    #: Whether the tenants' users have selectors (Redis ≥ 7.0).
    selectors: bool

    def login(self, user: str) -> str:
        """`user:password@` for a URL."""
        return f"{user}:{(self.passwords / user).read_text().split()[0]}@"

    def connect(self, user: str, database: int = 0) -> Any:
        """A client of one user, without retries."""
        return connect(self.server.url(database, login=self.login(user)))


@pytest.fixture(scope="session", params=sorted(SERVERS))
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedServer]:
    """A server on loopback TCP whose aclfile the command wrote."""
    folder = tmp_path_factory.mktemp("acl")
    (folder / "tenants.toml").write_text(REGISTRY)
    selectors = request.param == "path"
    arguments = ["--registry", str(folder / "tenants.toml"), "--passwords", str(folder / "passwords")]
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("sys.stdout.write", printed.append)
        assert access.main(["redis", *arguments, "--server", "7" if selectors else "6.2"]) == 0
    (folder / "users.acl").write_text("".join(printed))
    server = redis_server.start(
        folder / "redis", binary=SERVERS[request.param], port=0, fsync="everysec", acl_file=folder / "users.acl"
    )
    guarded = GuardedServer(server, folder / "passwords", selectors)
    with guarded.connect("operator") as client:
        assert client.info("server")["redis_version"].startswith("6.") is not selectors
    yield guarded
    server.stop()


@pytest.fixture
def operator(guarded: GuardedServer) -> Iterator[Any]:
    """The operator's client, on an emptied server."""
    with guarded.connect("operator") as client:
        client.flushall()
        yield client
