"""Resting with an ear open, on a real Redis: what is heard, what is not, and that silence is only a rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from infra.redis_server import RedisServer
from mrgc.client import Client
from mrgc.client_parts import Clock
from mrgc.client_settings import ClientSettings
from mrgc.done_stream import DoneStream
from mrgc.errors import ConfigError
from mrgc.waiting import State
from tests.access.users import add_users, login
from tests.client.tenants import Tenant

JOB = bytes(range(16))
LONG_S = 30.0


class Rests:
    """Stands for sleeping: remembers for how long."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        """Rest."""
        self.seconds.append(seconds)


@pytest.fixture
def rests() -> Rests:
    """The rests of one test."""
    return Rests()


@pytest.fixture
def server(redis_queue: RedisServer) -> Iterator[Any]:
    """The service's side of the stream, emptied."""
    add_users(redis_queue)
    with redis.Redis.from_url(redis_queue.url(), socket_timeout=10) as client:
        client.delete("done:acme")
        yield client


@pytest.fixture
def listen(redis_queue: RedisServer, server: Any, rests: Rests) -> Iterator[Callable[[float], list[bytes]]]:
    """How a tenant, with its own rights, rests while it waits for one job."""
    assert server.exists("done:acme") == 0
    url = redis_queue.url(login=login("tenant-acme"))
    stream = DoneStream(url, tenant="acme", monotonic=time.monotonic, rest=rests)
    yield stream.listener(int(time.time()), is_wanted=lambda job: job == JOB)
    stream.close()


def test_a_notice_ends_a_rest(server: Any, listen: Callable[[float], list[bytes]], rests: Rests) -> None:
    """One that comes during the rest is heard in the middle of it, and only once."""
    speaking = threading.Timer(0.2, lambda: server.xadd("done:acme", {"job": JOB.hex(), "status": "ok"}))
    speaking.start()
    assert listen(LONG_S) == [JOB]
    speaking.join()
    assert listen(0.0) == []
    assert rests.seconds == []


def test_what_was_said_before_is_heard_and_what_is_not_wanted_is_not(
    server: Any, listen: Callable[[float], list[bytes]]
) -> None:
    """Pages of other jobs, and entries that are no notices, are passed over; those of long ago are not even read."""
    server.xadd("done:acme", {"job": JOB.hex()}, id="1-1")
    for number in range(1_200):
        server.xadd("done:acme", {"job": f"{number:032x}"})
    for fields in ({"job": "zz"}, {"job": b"\xff"}, {"other": "x"}):
        server.xadd("done:acme", fields)
    assert listen(0.01) == []
    server.xadd("done:acme", {"job": JOB.hex()})
    assert listen(LONG_S) == [JOB]


def test_without_the_right_to_read_a_rest_is_a_rest(
    redis_queue: RedisServer, listen: Callable[[float], list[bytes]], rests: Rests, server: Any
) -> None:
    """Neither a missing right nor a server that is gone is an error, and neither is tried again at every rest."""
    server.xadd("done:acme", {"job": JOB.hex()})
    url = redis_queue.url(login=login("tenant-globex"))
    denied = DoneStream(url, tenant="acme", monotonic=time.monotonic, rest=rests)
    gone = DoneStream("redis://127.0.0.1:1/0", tenant="acme", monotonic=time.monotonic, rest=rests)
    for stream in (denied, gone):
        deaf = stream.listener(int(time.time()), is_wanted=lambda _job: True)
        assert deaf(LONG_S) == deaf(LONG_S) == []
        stream.close()
    assert len(rests.seconds) == 4
    assert min(rests.seconds) > LONG_S / 2
    assert listen(0.0) == [JOB]


def test_a_malformed_url_is_named_without_its_password() -> None:
    """The text says which variable, and no more."""
    with pytest.raises(ConfigError, match=r"^MRGC_QUEUE_URL is malformed$"):
        DoneStream("redis://:secret@host:port/0", tenant="acme", monotonic=time.monotonic, rest=time.sleep)


def test_a_wait_ends_by_the_notice_and_reads_the_result_itself(tenant: Tenant) -> None:
    """The answer counts, not the notice: one without a result ends nothing, one with it ends the wait at once."""
    rests = Rests()
    clock = Clock(rest=rests)
    with Client(ClientSettings.from_env(tenant.env()), clock=clock) as client:
        false, true = client.submit(["a", "b"], items_per_job=1)
        with redis.Redis.from_url(tenant.server.url(), socket_timeout=10) as service:
            service.xadd(f"done:{tenant.name}", {"job": false.id, "status": "ok"})
            outcomes = client.wait([false, true], timeout_s=LONG_S)
            tenant.peer.answer(tenant.peer.jobs()[1])
            service.xadd(f"done:{tenant.name}", {"job": true.id, "status": "ok"})
            first = next(outcomes)
    assert (first.job, first.state) == (true, State.OK)
    assert rests.seconds == []
