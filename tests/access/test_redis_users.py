"""What each user of the Redis may do, asked of real servers: its own work, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.access.conftest import GuardedServer

#: Redis runs these before it looks at any rule; they touch no data.
BEFORE_RULES = {"auth", "hello", "quit", "reset"}
TENANT_COMMANDS = {"ping", "xadd", "xread"}
#: Keys that are not `q:acme`, however much they look like it.
FOREIGN_KEYS = [
    "q:globex", "dead:acme", "deaths:acme", "done:globex", "ctl:control", "ctl:infer", "ctl:unacked", "q:acme2",
    "q:acm", "q:", "q:*", "q:acme*", "q:acme\x00", "q:acme\n", "Q:acme", "{q:acme}", "q:{acme}", "q:acme{", " q:acme",
    "acme", "",
]  # fmt: skip


@pytest.fixture
def acme(guarded: GuardedServer, operator: Any) -> Iterator[Any]:
    """The client of one of two tenants, on a server that holds something of everybody's."""
    for key in ("q:acme", "q:globex", "done:acme", "done:globex", "dead:acme", "ctl:stream"):
        operator.xadd(key, {"job": b"kept"}, id="1-1")
    operator.xgroup_create("q:acme", "gpu", id="0")
    with guarded.connect("tenant-acme") as client:
        yield client


def refused(client: Any, *words: object) -> bool:
    """Whether the server refuses a command for want of rights."""
    try:
        client.execute_command(*words)
    except redis.ResponseError as error:
        # Redis 7 switches DEBUG and MODULE off for everybody, before it looks at any rule.
        return "no permissions" in str(error) or " command not allowed. " in str(error)
    return False


def commands_of(operator: Any) -> Iterator[tuple[list[str], int]]:
    """Every command and subcommand of the server, and how many words it needs."""
    operator.set_response_callback("COMMAND", lambda reply, **_options: reply)
    for name, arity, *rest in operator.execute_command("COMMAND"):
        subcommands = rest[7] if len(rest) > 7 else []
        for subcommand, least, *_ in subcommands:
            yield subcommand.decode().split("|"), abs(least)
        if not subcommands:
            yield [name.decode()], abs(arity)


def test_a_tenant_adds_jobs_and_reads_its_notices(acme: Any) -> None:
    """The two things that a tenant does work, on its own keys."""
    assert acme.ping()
    assert acme.xadd("q:acme", {"job": b"sealed"})
    assert acme.xread({"done:acme": "0"}, count=1, block=10)[0][0] == b"done:acme"


def test_a_tenant_runs_no_other_command(acme: Any, operator: Any) -> None:
    """Every command that the server knows, with enough words, on the tenant's own key: all but three are refused."""
    allowed = set()
    commands = [(words, arity) for words, arity in commands_of(operator) if words[0] not in BEFORE_RULES]
    assert len(commands) > 200
    for words, arity in commands:
        padding = ["q:acme", *["1"] * arity][: max(0, arity - len(words))]
        if not refused(acme, *words, *padding):
            allowed.add(" ".join(words))
    assert allowed == TENANT_COMMANDS
    assert operator.xrange("q:acme") == [(b"1-1", {b"job": b"kept"})]


@pytest.mark.parametrize("key", FOREIGN_KEYS)
def test_a_tenant_reaches_no_other_key(acme: Any, operator: Any, key: str) -> None:
    """Neither to add nor to read, alone or beside its own."""
    before = operator.dbsize(), operator.xlen("q:globex")
    assert refused(acme, "XADD", key, "*", "job", "x")
    assert refused(acme, "XREAD", "COUNT", "1", "STREAMS", key, "0")
    assert refused(acme, "XREAD", "COUNT", "1", "STREAMS", "done:acme", key, "0", "0")
    assert refused(acme, "XADD", key, "MAXLEN", "0", "*", "job", "x")
    assert (operator.dbsize(), operator.xlen("q:globex")) == before


def test_with_selectors_a_tenant_neither_reads_its_queue_nor_writes_its_notices(
    guarded: GuardedServer, acme: Any
) -> None:
    """Redis 7 binds each command to its key; before it a tenant can do both, to itself alone."""
    assert refused(acme, "XREAD", "STREAMS", "q:acme", "0") is guarded.selectors
    assert refused(acme, "XADD", "done:acme", "*", "job", "x") is guarded.selectors


@pytest.mark.parametrize(
    "words",
    [
        ("MULTI",),
        ("EVAL", "return redis.call('XLEN', 'q:globex')", "0"),
        ("EVAL", "return redis.call('XADD', KEYS[1], '*', 'a', 'b')", "1", "q:acme"),
        ("SELECT", "1"),
        ("SUBSCRIBE", "ctl:/1.celery.pidbox"),
        ("PUBLISH", "ctl:/1.celery.pidbox", "{}"),
        ("CONFIG", "SET", "maxmemory", "1"),
        ("ACL", "SETUSER", "tenant-acme", "+@all"),
        ("DEBUG", "SLEEP", "0"),
        ("XREADGROUP", "GROUP", "gpu", "x", "STREAMS", "q:acme", ">"),
        ("XTRIM", "q:acme", "MAXLEN", "0"),
        ("XINFO", "STREAM", "q:acme"),
        ("XLEN", "q:acme"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("DEL", "q:acme"),
        ("RENAME", "q:acme", "q:globex"),
        ("COPY", "q:acme", "q:globex"),
        ("MIGRATE", "127.0.0.1", "1", "q:acme", "0", "1"),
        ("REPLICAOF", "127.0.0.1", "1"),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("MONITOR",),
        ("SHUTDOWN", "NOSAVE"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_what_an_attacker_would_try_is_refused(acme: Any, words: tuple[str, ...]) -> None:
    """Scripts, transactions, other databases, channels, consumer groups and administration are all closed."""
    assert refused(acme, *words)


@settings(max_examples=200)
@given(key=st.binary(max_size=20) | st.text(alphabet="q:acmedon*?[]{}", max_size=12).map(str.encode))
def test_no_key_but_its_own_takes_a_tenants_entry(guarded: GuardedServer, key: bytes) -> None:
    """No bytes spell another key that the tenant's pattern lets through."""
    own = {b"q:acme"} if guarded.selectors else {b"q:acme", b"done:acme"}
    with guarded.connect("tenant-acme") as client:
        assert refused(client, "XADD", key, "*", "job", "x") is (key not in own)


def test_nobody_enters_without_a_password(guarded: GuardedServer) -> None:
    """The default user is off, a wrong password is refused, and so is another user's."""
    url = guarded.server.url()
    with redis.Redis.from_url(url) as anonymous, pytest.raises(redis.AuthenticationError):
        anonymous.ping()
    other = guarded.login("tenant-globex").partition(":")[2]
    for login in ("tenant-acme:wrong@", f"tenant-acme:{other}", f"operator:{other}", "tenant-initech:x@", "default:@"):
        with redis.Redis.from_url(guarded.server.url(login=login)) as client, pytest.raises(redis.AuthenticationError):
            client.ping()


def test_a_worker_and_celery_do_not_reach_each_others_keys(guarded: GuardedServer, operator: Any) -> None:
    """The queue's user has no right on Celery's keys and channels, Celery's user none on the queues."""
    operator.lpush("ctl:control", "x")
    operator.xadd("q:acme", {"job": "x"})
    with guarded.connect("worker") as worker, guarded.connect("control") as control:
        assert refused(worker, "XADD", "ctl:control", "*", "a", "b")
        assert refused(worker, "LPUSH", "ctl:control", "x")
        assert refused(worker, "PUBLISH", "ctl:/1.celery.pidbox", "{}")
        for words in (("XADD", "q:acme", "*", "a", "b"), ("XRANGE", "q:acme", "-", "+"), ("DEL", "q:acme")):
            assert refused(control, *words)
        for client in (worker, control):
            for command in ("KEYS *", "FLUSHALL", "CONFIG GET *", "ACL LIST", "SHUTDOWN"):
                assert refused(client, *command.split())


def test_an_edge_worker_only_adds(guarded: GuardedServer, operator: Any) -> None:
    """It can add to every tenant's queue, and neither read nor remove."""
    with guarded.connect("edge") as edge:
        assert edge.xadd("q:globex", {"job": "x"})
        assert refused(edge, "XADD", "dead:acme", "*", "a", "b")
        assert refused(edge, "XRANGE", "q:globex", "-", "+")
        assert refused(edge, "XDEL", "q:globex", "1-1")
    assert operator.xlen("q:globex") == 1


def test_a_producer_reaches_the_edge_workers_queue_only(guarded: GuardedServer, operator: Any) -> None:
    """It cannot lay a message on the control queue, take one, or speak to workers by remote control."""
    operator.execute_command("SELECT", 1)
    with guarded.connect("producer", database=1) as producer:
        assert producer.lpush("ctl:infer", "x") == 1
        for words in (
            ("LPUSH", "ctl:control", "x"),
            ("SADD", "ctl:_kombu.binding.control", "x"),
            ("HSET", "ctl:unacked", "tag", "x"),
            ("BRPOP", "ctl:infer", "1"),
            ("LRANGE", "ctl:infer", "0", "-1"),
            ("PUBLISH", "ctl:/1.celery.pidbox", "{}"),
            ("XADD", "q:acme", "*", "job", "x"),
        ):
            assert refused(producer, *words), words


def test_celery_works_with_its_users(guarded: GuardedServer, operator: Any) -> None:
    """A producer's own Celery sends to the edge worker's queue; Celery's user takes it, and speaks to workers."""
    options = {"global_keyprefix": "ctl:", "client_name": "mrgc-control"}
    with Celery(broker=guarded.server.broker_url(login=guarded.login("producer"))) as producer:
        producer.conf.broker_transport_options = options
        producer.send_task("tasks.infer", args=["job"], queue="infer", retry=False)
    url = guarded.server.broker_url(login=guarded.login("control"))
    with Celery(broker=url) as control:
        control.conf.broker_transport_options = options
        message = control.connection_for_read().SimpleQueue("infer").get(timeout=10)
        assert message.headers["task"] == "tasks.infer"
        message.ack()
        assert control.control.inspect(timeout=0.1).ping() is None
    operator.execute_command("SELECT", 1)
    assert operator.llen("ctl:infer") == operator.hlen("ctl:unacked") == 0
