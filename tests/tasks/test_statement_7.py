"""Statement 7 of the threat model: crafted messages execute nothing, kill no worker, and are dead-lettered or dropped.

A tenant reaches nothing but its own stream (tests/access); in-house producers reach the queue of the edge worker too.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.redis_server import RedisServer
from mrgc.errors import BY_CODE
from tests.intake.peer_engine import PeerEngine, result_of
from tests.intake.sealing import seal, stored
from tests.tasks import crafted
from tests.tasks.conftest import StartWorker
from tests.waiting import until
from worker.sources.redis_streams import Client, connect


@pytest.fixture
def broker(server: RedisServer) -> Iterator[Client]:
    """Celery's own database, as whoever has the broker's password sees it."""
    with connect(server.url(1)) as broker:
        yield broker


def push(broker: Client, queue: str, message: object) -> None:
    """Lay a message on one of Celery's queues."""
    broker.lpush(f"ctl:{queue}", json.dumps(message))


def queued(broker: Client) -> int:
    """Messages that Celery's queues still hold, taken ones included."""
    return int(broker.llen("ctl:control") + broker.llen("ctl:infer") + broker.hlen("ctl:unacked"))


def test_statement_7_a_tenants_crafted_messages_end_as_dead_letters(
    start_worker: StartWorker, client: Client, results: Path, engine: PeerEngine, tmp_path: Path
) -> None:
    """Each one is moved, unchanged and with a known reason; nothing runs; the same process then serves a good job."""
    marker = tmp_path / "executed"
    foreign, last = seal("globex"), seal()
    entries = dict(crafted.tenant_entries(marker, job=foreign))
    worker = start_worker()
    sources = {client.xadd("q:acme", fields): name for name, fields in entries.items()}
    client.xadd("q:acme", {"job": last})
    until(lambda: client.xlen("q:acme") == 0, within_s=30, what="every message has left the queue")

    letters = {letter[b"source"]: letter for _, letter in client.xrange("dead:acme")}
    assert {sources[source] for source in letters} == set(entries)
    assert {letter[b"reason"].decode() for letter in letters.values()} <= BY_CODE.keys() - {"internal", "poison"}
    for source, letter in letters.items():
        sent = entries[sources[source]]
        assert [letter.get(name.encode()) for name in ("job", "ref")] == [sent.get(name) for name in ("job", "ref")]
    assert not marker.exists()
    assert client.xlen("q:globex") == 0
    assert engine.batches == [[last]]
    assert stored(results, last) == result_of(last)
    assert worker.process.poll() is None
    assert "mrgc_threads_replaced_total{" not in worker.page("/metrics")[1]
    assert worker.end() == 0


def test_statement_7_a_worker_runs_no_crafted_message_of_its_own_queue(
    start_worker: StartWorker, client: Client, broker: Client, results: Path, tmp_path: Path
) -> None:
    """Even with the broker's password, built-in tasks, callbacks and pickles run nothing in a GPU host's worker."""
    marker = tmp_path / "executed"
    client.xadd("dead:acme", {"job": b"kept", "reason": "auth"}, id="1-1")
    worker = start_worker("--loglevel", "WARNING")
    calls = crafted.celery_calls("tasks.control.purge_expired", "acme")
    foreign = {"infer": crafted.call("tasks.infer", base64.b64encode(seal("globex")).decode())}
    for headers, body in (calls | foreign).values():
        push(broker, "control", crafted.envelope(headers, body))
    for content_type in ("application/x-python-serialize", "application/x-yaml", "text/plain", "", None, ["x"]):
        push(
            broker, "control", crafted.envelope(*crafted.call("tasks.control.health")) | {"content-type": content_type}
        )
    until(lambda: queued(broker) == 0, within_s=30, what="every message has left the broker")
    assert worker.log.count("control message refused") == len(calls) + 1 + 6
    assert client.xlen("dead:acme") == 1
    assert client.xlen("q:globex") == 0
    assert not marker.exists()

    push(broker, "control", crafted.envelope(*crafted.call("tasks.control.purge_expired", "acme")))
    until(lambda: client.xlen("dead:acme") == 0, within_s=20, what="a plain call is run")
    last = seal()
    client.xadd("q:acme", {"job": last})
    until(lambda: stored(results, last), within_s=20, what="a good job is served")
    assert worker.end() == 0


@pytest.mark.parametrize("queue", ["control", "infer"])
def test_statement_7_no_message_of_its_own_queue_kills_a_worker(
    start_worker: StartWorker, client: Client, broker: Client, environ: dict[str, str], queue: str
) -> None:
    """What is no JSON, no envelope, or of wrong types is dropped with a line in the log, by both kinds of worker."""
    client.xadd("dead:acme", {"job": b"kept", "reason": "auth"}, id="1-1")
    job = seal()
    infer = "tasks.infer", base64.b64encode(job).decode()
    task, *args = infer if queue == "infer" else ("tasks.control.purge_expired", "acme")
    if queue == "infer":
        for name in ("MRGC_ENGINES", "MRGC_RESULTS_URL"):
            del environ[name]
    worker = start_worker(*(("-Q", "infer") if queue == "infer" else ()), ready=queue == "control")
    messages = [text.encode() for text in crafted.poison(task, *args).values()] + [b"\xff\xfe", b"", b"\x80\x04N."]
    for message in messages:
        broker.lpush(f"ctl:{queue}", message)
    until(lambda: queued(broker) == 0, within_s=40, what="every message has left the broker")
    until(lambda: worker.log.count("control message refused") == len(messages), within_s=10, what="each has its line")
    assert client.xlen("dead:acme") == 1
    assert client.xlen("q:acme") == 0

    headers, body = crafted.call(task, *args, headers={"redelivered": True})
    info = {"exchange": "reply", "routing_key": "q:globex"}
    push(broker, queue, crafted.envelope(headers, body, delivery_tag=["a"], delivery_info=info))
    done = (lambda: client.xlen("q:acme") == 1) if queue == "infer" else (lambda: client.xlen("dead:acme") == 0)
    until(done, within_s=20, what="a plain call is run by the same worker, also one that another began")
    until(lambda: queued(broker) == 0, within_s=10, what="it has left the broker")
    assert worker.process.poll() is None
    assert worker.end() == 0


def test_statement_7_an_edge_worker_forwards_and_does_nothing_else(
    start_worker: StartWorker, client: Client, broker: Client, environ: dict[str, str]
) -> None:
    """An in-house producer cannot make the edge worker run a control task or send anything on."""
    client.xadd("dead:acme", {"job": b"kept", "reason": "auth"}, id="1-1")
    for name in ("MRGC_ENGINES", "MRGC_RESULTS_URL"):
        del environ[name]
    worker = start_worker("-Q", "infer", "--loglevel", "WARNING", ready=False)
    foreign, good = (base64.b64encode(seal(tenant)).decode() for tenant in ("globex", "acme"))
    calls = crafted.celery_calls("tasks.infer", foreign)
    calls |= {"link-of-infer": crafted.call("tasks.infer", good, callbacks=[crafted.signature("tasks.infer", foreign)])}
    calls |= {
        "purge": crafted.call("tasks.control.purge_expired", "acme"),
        "health": crafted.call("tasks.control.health"),
    }
    for headers, body in calls.values():
        push(broker, "infer", crafted.envelope(headers, body))
    push(broker, "infer", crafted.envelope(*crafted.call("tasks.infer", good)))
    until(lambda: client.xlen("q:acme") == 1, within_s=30, what="the plain call is forwarded")
    until(lambda: queued(broker) == 0, within_s=10, what="every message has left the broker")
    assert client.xlen("q:acme") == 1
    assert client.xlen("q:globex") == 0
    assert client.xlen("dead:acme") == 1
    assert worker.process.poll() is None
    assert worker.end() == 0
