"""Servers around a tenant: started once, used by every test of the tenant's side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import redis_server
from infra.redis_server import RedisServer
from mrgc.client import Client
from tests.client.tenants import Kms, Tenant, make_tenant, start_kms


@pytest.fixture(scope="session")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kms]:
    """A one-machine KMS in a process of its own."""
    started = start_kms(tmp_path_factory.mktemp("kms"), ("acme", "globex"))
    yield started
    started.stop()


@pytest.fixture(scope="session")
def redis_queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A redis-server on a unix socket."""
    server = redis_server.start(tmp_path_factory.mktemp("redis"), fsync="everysec")
    yield server
    server.stop()


@pytest.fixture
def tenant(kms: Kms, redis_queue: RedisServer, tmp_path: Path) -> Tenant:
    """The tenant acme."""
    return make_tenant("acme", kms=kms, server=redis_queue, folder=tmp_path)


@pytest.fixture
def other_tenant(kms: Kms, redis_queue: RedisServer, tmp_path: Path) -> Tenant:
    """The tenant globex, whose results lie in the same store."""
    return make_tenant("globex", kms=kms, server=redis_queue, folder=tmp_path)


@pytest.fixture
def client(tenant: Tenant) -> Iterator[Client]:
    """A client of acme."""
    with Client.from_env(tenant.env()) as made:
        yield made
