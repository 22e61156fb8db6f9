"""Notices that jobs have ended: what they say, in which order they come, and that none is worth a job."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from infra.redis_server import RedisServer
from mrgc.errors import ConfigError, QueueUnavailable
from mrgc.wire import sealed
from tests.access.users import login
from tests.intake.conftest import StartHost
from tests.intake.peer_engine import PeerEngine, result_of
from tests.intake.sealing import object_name, seal, stored
from tests.waiting import until
from worker.composition import open_notifier
from worker.notices import Announcer, Notice
from worker.redis_notices import KEPT, KEPT_S, RedisNotices
from worker.settings import WorkerSettings
from worker.sns_notices import SnsNotices
from worker.sources.redis_streams import Client, connect

REGION = "eu-west-1"
TOPIC = f"arn:aws:sns:{REGION}:123456789012:done-{{tenant}}"


QUEUE = f"https://sqs.{REGION}.amazonaws.com/123456789012/mrgc-{{tenant}}"


def settings(queue_url: str, notices: str) -> WorkerSettings:
    """A worker's settings, which differ in two."""
    return WorkerSettings(queue_url, "redis://localhost/1", "file:///r/", Path("t"), ("unix:/e",), notices=notices)


def read(client: Client, tenant: str = "acme") -> list[dict[str, str]]:
    """All notices of a tenant."""
    return [
        {name.decode(): value.decode() for name, value in fields.items()}
        for _, fields in client.xrange(f"done:{tenant}")
    ]


def notice(number: int, tenant: str = "acme") -> Notice:
    """One notice of many."""
    return Notice(tenant, f"{number:032x}", f"{number:064x}", "ok", f"s3://results/{tenant}/{number:032x}/x.mrgc")


def test_a_notice_names_job_request_status_and_object_and_nothing_else(
    start_host: StartHost, client: Client, server: RedisServer
) -> None:
    """A served job and a refused one are told of once, to their tenant alone; a message without a job is not."""
    host = start_host(notices="stream")
    good, late = seal(), seal(created=int(time.time()) - 100, expires=int(time.time()) - 50)
    host.send(good, late)
    client.xadd("q:acme", {"job": b"no job"})
    host.wait_acked()
    until(lambda: client.xlen("done:acme") == 2, within_s=5, what="both notices are there")
    found = {each["job"]: each for each in read(client)}
    for job, status, suffix in ((good, "ok", "mrgc"), (late, "refused", "refused")):
        parsed = sealed.parse_job(job)
        assert found[parsed.header.job.hex()] == {
            "job": parsed.header.job.hex(),
            "request": parsed.request.hex(),
            "status": status,
            "object": f"file://{host.results}/{object_name(job, suffix=suffix)}",
        }
    assert client.exists("done:globex") == 0
    assert 0 < client.ttl("done:acme") <= KEPT_S
    with connect(server.url(login=login("tenant-acme"))) as acme:
        assert acme.xread({"done:acme": "0"})[0][1][0][1].keys() == {b"job", b"request", b"status", b"object"}


def test_a_job_is_told_of_after_it_is_stored_and_before_it_is_acknowledged(
    start_host: StartHost, client: Client
) -> None:
    """Whoever hears of a job finds its result; and when its message is gone, its notice is there."""
    host = start_host(notices="stream")
    jobs = [seal() for _ in range(200)]
    host.send(*jobs)
    names = {sealed.parse_job(job).header.job.hex(): job for job in jobs}
    heard: set[str] = set()
    after = "0"
    while len(heard) < len(jobs):
        for _, entries in client.xread({"done:acme": after}, block=10_000):
            for after, fields in entries:  # noqa: B007  the last one read is where the next read begins
                heard.add(fields[b"job"].decode())
                assert stored(host.results, names[fields[b"job"].decode()]) is not None
    host.wait_acked()
    assert client.xlen("done:acme") == len(jobs)


def deny(client: Client) -> None:
    """Take the worker's right to the streams of notices away."""
    client.execute_command("ACL", "SETUSER", "worker", "resetkeys", "~q:*", "~dead:*", "~deaths:*")


def fill(client: Client) -> None:
    """Leave the server no memory for anything new."""
    client.config_set("maxmemory", 1)


@pytest.mark.parametrize("hurt", [deny, fill])
def test_a_notice_that_cannot_be_sent_delays_no_job(
    start_host: StartHost, client: Client, engine: PeerEngine, hurt: Callable[[Client], None]
) -> None:
    """Jobs are stored and acknowledged as ever, and the lost notices are counted."""
    host = start_host(notices="stream")
    engine.may_answer.clear()
    jobs = [seal() for _ in range(5)]
    host.send(*jobs)
    until(lambda: sum(map(len, engine.batches)) == len(jobs), within_s=10, what="the engine has the jobs")
    hurt(client)
    try:
        engine.may_answer.set()
        host.wait_stored(*jobs)
        assert [stored(host.results, job) for job in jobs] == [result_of(job) for job in jobs]
    finally:
        client.config_set("maxmemory", 0)
    assert client.exists("done:acme") == 0
    counted = host.intake.metrics.registry.get_sample_value
    assert counted("mrgc_notices_total", {"outcome": "lost"}) == len(jobs)
    last = seal()
    host.send(last)
    host.wait_stored(last)


class Recorder:
    """A way that does as it is told."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.answer: Callable[[int], int] = lambda _count: 0

    def publish(self, notices: Sequence[Notice]) -> int:
        self.calls.append(len(notices))
        return self.answer(len(notices))

    def close(self) -> None:
        pass


def fail(_count: int) -> int:
    """Behave as a broker that does not answer."""
    raise QueueUnavailable("TimeoutError")


def test_an_announcer_lets_a_failing_way_be_for_a_while() -> None:
    """A failure pauses it, what is said meanwhile is lost and counted, and a success ends it."""
    recorder, counts, clock = Recorder(), {"sent": 0, "lost": 0}, [0.0]

    def count(outcome: str, number: int) -> None:
        counts[outcome] += number

    announcer = Announcer(recorder, count=count, clock=lambda: clock[0])
    announcer.announce([notice(0)])
    recorder.answer = fail
    announcer.announce([notice(1), notice(2)])
    announcer.announce([notice(3)])
    assert recorder.calls == [1, 2]
    recorder.answer = lambda _count: 1
    clock[0] = 1.0
    announcer.announce([notice(4), notice(5)])
    announcer.announce([])
    assert recorder.calls == [1, 2, 2]
    assert counts == {"sent": 2, "lost": 4}
    Announcer(None, count=count).announce([notice(6)])
    assert counts == {"sent": 2, "lost": 4}


def test_a_stream_is_capped(client: Client) -> None:
    """A tenant who never reads costs a bounded stream, of the newest notices."""
    RedisNotices(client).publish([notice(number) for number in range(5_000)])
    assert KEPT <= client.xlen("done:acme") < KEPT + 200
    assert read(client)[-1]["job"] == f"{4_999:032x}"


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """SNS and SQS of moto on loopback, as boto3's own variables name them."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    url = f"http://127.0.0.1:{port}"
    for name, value in {
        "AWS_ENDPOINT_URL_SNS": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": REGION,
    }.items():
        monkeypatch.setenv(name, value)
    yield url
    server.stop()


def test_sns_takes_each_tenants_notices_to_its_own_topic(aws: str) -> None:
    """More than one call's worth arrives once each; a topic that is missing loses its own tenant's only."""
    sns: Any = boto3.client("sns", region_name=REGION)
    sqs = boto3.client("sqs", endpoint_url=aws, region_name=REGION)
    topic = sns.create_topic(Name="done-acme")["TopicArn"]
    assert topic == TOPIC.replace("{tenant}", "acme")
    queue = sqs.create_queue(QueueName="acme")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn, Attributes={"RawMessageDelivery": "true"})
    notifier = SnsNotices(TOPIC)
    lost = notifier.publish([*(notice(number) for number in range(25)), notice(0, "globex")])
    assert lost == 1
    heard = []
    while messages := sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", []):
        heard += [json.loads(message["Body"]) for message in messages]
    assert sorted(heard, key=lambda each: each["job"]) == [notice(number)._asdict() for number in range(25)]
    with pytest.raises(QueueUnavailable):
        notifier.publish([notice(0, "globex")])
    notifier.close()


@pytest.mark.parametrize(
    ("queue", "notices", "kind"),
    [
        ("redis://localhost/0", "", RedisNotices),
        ("redis://localhost/0", "off", type(None)),
        ("redis://localhost/0", TOPIC, SnsNotices),
        (QUEUE, "", type(None)),
        (QUEUE, TOPIC, SnsNotices),
    ],
)
def test_the_way_follows_the_setting_and_the_queue(queue: str, notices: str, kind: type) -> None:
    """Without a word, Redis has streams and SQS has none."""
    found = open_notifier(settings(queue, notices))
    assert isinstance(found, kind)
    if found is not None:
        found.close()


def test_notices_in_a_stream_need_a_redis() -> None:
    """Where the queue is at SQS there is no server for the stream."""
    with pytest.raises(ConfigError, match="MRGC_NOTICES"):
        open_notifier(settings(QUEUE, "stream"))


@pytest.mark.parametrize("topic", ["streams", "arn:aws:sqs:eu-west-1:123456789012:x", TOPIC + ".fifo", "{tenant}"])
def test_a_way_that_does_not_exist_is_refused(topic: str) -> None:
    """A misspelt setting ends the worker before it takes a message."""
    with pytest.raises(ConfigError, match="MRGC_NOTICES"):
        SnsNotices(topic)
