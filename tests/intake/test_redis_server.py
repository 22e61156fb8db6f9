"""The stack's own redis-server: durable, on loopback or a socket file, and honest when it cannot start."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra import redis_server
from mrgc.errors import QueueUnavailable
from worker.sources.redis_streams import connect


def test_what_it_confirmed_survives_a_crash(tmp_path: Path) -> None:
    """After SIGKILL and a start on the same directory every confirmed message is there."""
    server = redis_server.start(tmp_path, port=0)
    assert server.url().startswith("redis://127.0.0.1:")
    with connect(server.url()) as client:
        for index in range(100):
            client.xadd("q:acme", {"job": b"%d" % index})
    server.kill()
    revived = redis_server.start(tmp_path)
    try:
        with connect(revived.url()) as client:
            assert client.xlen("q:acme") == 100
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("proto-max-bulk-len") == {"proto-max-bulk-len": str(1 << 20)}
    finally:
        revived.stop()
    assert revived.process.returncode == 0


def test_a_server_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    """A binary that ends at once is reported within its start time, and nothing is left running."""
    with pytest.raises(QueueUnavailable):
        redis_server.start(tmp_path, binary=Path("/bin/false"))
