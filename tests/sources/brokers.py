"""The brokers that the contract of sources is tested on, each seen without the product's own code."""

from __future__ import annotations

import base64
import itertools
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

import boto3

from infra.redis_server import RedisServer
from mrgc.wire import strict_cbor
from mrgc.wire.queue_urls import SqsQueues, parse_sqs
from tests.access.users import add_users, login
from tests.waiting import until
from worker.sources import redis_streams, sqs_calls
from worker.sources.base import Budget, JobSource, Lease, QueueAdmin
from worker.sources.redis_admin import RedisAdmin
from worker.sources.redis_streams import Client, RedisStreams
from worker.sources.sqs import RECEIVERS, SqsSource
from worker.sources.sqs_admin import SqsAdmin
from worker.threads import SupervisedThreads

MIB: Final = 1 << 20
LEASE_S: Final = 30.0
REGION: Final = "eu-west-1"

_numbers = itertools.count()


class Letter(NamedTuple):
    """One dead letter; `body` as the broker holds it."""

    reason: str
    attempts: str
    source: str
    body: bytes


class Host:
    """One host's source with its loops running, as an intake runs them."""

    def __init__(self, source: JobSource) -> None:
        self.source = source
        #: Loops that died, by name.
        self.died: list[str] = []
        self._threads = SupervisedThreads(died=self.died.append)
        self._threads.start(source.loops)
        self._is_closed = False

    def ask(self, *, wait_s: float = 0.0, jobs: int = 100, room: int = 256 * MIB, **tenants: int) -> list[Lease]:
        """Ask once, for `acme` alone unless tenants are named."""
        return self.source.receive(Budget(jobs, room, tenants or {"acme": 10_000}), wait_s=wait_s)

    def receive(self, count: int, *, within_s: float = 15.0, **tenants: int) -> list[Lease]:
        """Ask, and recover, until `count` different messages came."""
        found: dict[tuple[str, str], Lease] = {}
        budget = Budget(100, 256 * MIB, tenants or {"acme": 10_000})

        def enough() -> bool:
            for lease in [*self.source.receive(budget, wait_s=0.1), *self.source.recover(budget)]:
                found[lease.key] = lease
            return len(found) >= count

        until(enough, within_s=within_s, what=f"{count} messages, {len(found)} came")
        return list(found.values())

    def gets_nothing(self, *, for_s: float = 1.0, **tenants: int) -> bool:
        """Ask and recover for a while."""
        end_s = time.monotonic() + for_s
        budget = Budget(100, 256 * MIB, tenants or {"acme": 10_000})
        while time.monotonic() < end_s:
            if self.source.receive(budget, wait_s=0.1) or self.source.recover(budget):
                return False
        return True

    def tell_to_stop(self) -> None:
        """Let the loops end; returns at once."""
        self._threads.tell_to_stop(*self.source.loops)

    def stop_loops(self) -> None:
        """End the loops, as a drain does first."""
        assert self._threads.stop_all(within_s=10) == []

    def close(self) -> None:
        """End the loops and the source."""
        if not self._is_closed:
            self._is_closed = True
            self.stop_loops()
            self.source.close()


class Broker(Protocol):
    """Queues of one test."""

    def make(self, *tenants: str) -> None:
        """Make what tenants' queues need to exist."""
        ...

    def remove(self, tenant: str) -> None:
        """Delete a tenant's queue."""
        ...

    def source(self, name: str, *, lease_s: float, clock: Callable[[], float]) -> JobSource:
        """Make the source of a host."""
        ...

    def admin(self) -> QueueAdmin:
        """Make the admin of the queues."""
        ...

    def send(self, tenant: str, *jobs: bytes) -> None:
        """Append jobs as a tenant does."""
        ...

    def send_garbage(self, tenant: str, garbage: str) -> None:
        """Append what is neither a job nor a claim check."""
        ...

    def send_ref(self, tenant: str, ref: Mapping[str, Any]) -> None:
        """Append a claim check of url, sha256 (bytes) and bytes."""
        ...

    def count(self, tenant: str) -> int:
        """Count messages of a queue, leased ones included."""
        ...

    def letters(self, tenant: str) -> list[Letter]:
        """Return the dead letters."""
        ...

    def close(self) -> None:
        """Close connections."""
        ...


class RedisQueues:
    """Redis Streams on one server, emptied first."""

    def __init__(self, server: RedisServer) -> None:
        self._url = server.url(login=login("worker"))
        self.client: Client = redis_streams.connect(server.url())
        self.client.flushall()
        add_users(server)

    def make(self, *tenants: str) -> None:
        """Do nothing: the first message makes a stream, the first receive its group."""

    def remove(self, tenant: str) -> None:
        """See `Broker`."""
        self.client.delete(f"q:{tenant}")

    def source(self, name: str, *, lease_s: float, clock: Callable[[], float]) -> RedisStreams:
        """See `Broker`; with the rights of a worker and no more."""
        return RedisStreams(redis_streams.connect(self._url), consumer=name, lease_s=lease_s, clock=clock)

    def admin(self) -> QueueAdmin:
        """See `Broker`."""
        return RedisAdmin(redis_streams.connect(self._url))

    def send(self, tenant: str, *jobs: bytes) -> None:
        """See `Broker`."""
        for job in jobs:
            self.client.xadd(f"q:{tenant}", {"job": job})

    def send_garbage(self, tenant: str, garbage: str) -> None:
        """See `Broker`."""
        self.client.xadd(f"q:{tenant}", {"task": garbage})

    def send_ref(self, tenant: str, ref: Mapping[str, Any]) -> None:
        """See `Broker`."""
        self.client.xadd(f"q:{tenant}", {"ref": strict_cbor.encode(dict(ref))})

    def count(self, tenant: str) -> int:
        """See `Broker`."""
        return int(self.client.xlen(f"q:{tenant}"))

    def letters(self, tenant: str) -> list[Letter]:
        """See `Broker`."""
        return [
            Letter(
                fields[b"reason"].decode(), fields[b"attempts"].decode(), fields[b"source"].decode(),
                fields.get(b"job", fields.get(b"ref", b"")),
            )
            for _, fields in self.client.xrange(f"dead:{tenant}")
        ]  # fmt: skip

    def close(self) -> None:
        """See `Broker`."""
        self.client.close()


class SqsTestQueues:
    """Queues of one test on a server that speaks SQS's protocol; their names are this test's alone."""

    def __init__(self, endpoint: str, *, shared: bool = False) -> None:
        number = next(_numbers)
        name = f"t{number}-jobs" if shared else f"t{number}-{{tenant}}"
        self.url = f"{endpoint}/000000000000/{name}"
        self.queues: SqsQueues = parse_sqs(self.url)
        self.client = boto3.client("sqs", endpoint_url=endpoint, region_name=REGION)
        self.make("acme", "globex")

    def make(self, *tenants: str) -> None:
        """Create queues and their dead-letter queues as docs/operations.md §8 says."""
        for tenant in tenants:
            dead_url = self.client.create_queue(QueueName=_name(self.queues.dead(tenant)))["QueueUrl"]
            dead = self.client.get_queue_attributes(QueueUrl=dead_url, AttributeNames=["QueueArn"])["Attributes"]
            policy = json.dumps({"deadLetterTargetArn": dead["QueueArn"], "maxReceiveCount": 1_000})
            self.client.create_queue(QueueName=_name(self.queues.queue(tenant)), Attributes={"RedrivePolicy": policy})

    def remove(self, tenant: str) -> None:
        """See `Broker`."""
        self.client.delete_queue(QueueUrl=self.queues.queue(tenant))

    def source(self, name: str, *, lease_s: float, clock: Callable[[], float]) -> JobSource:  # noqa: ARG002  Redis's
        """See `Broker`."""
        return SqsSource(sqs_calls.connect(self.queues, receivers=RECEIVERS), self.queues, lease_s=lease_s, clock=clock)

    def admin(self) -> QueueAdmin:
        """See `Broker`."""
        return SqsAdmin(sqs_calls.connect(self.queues), self.queues)

    def send(self, tenant: str, *jobs: bytes) -> None:
        """See `Broker`."""
        for start in range(0, len(jobs), 10):
            entries: Any = [
                {"Id": str(i), "MessageBody": base64.b64encode(job).decode(), "MessageGroupId": tenant}
                for i, job in enumerate(jobs[start : start + 10])
            ]
            assert not self.client.send_message_batch(QueueUrl=self.queues.queue(tenant), Entries=entries).get("Failed")

    def send_garbage(self, tenant: str, garbage: str) -> None:
        """See `Broker`."""
        self.client.send_message(QueueUrl=self.queues.queue(tenant), MessageBody=garbage, MessageGroupId=tenant)

    def send_ref(self, tenant: str, ref: Mapping[str, Any]) -> None:
        """See `Broker`."""
        self.send_garbage(tenant, json.dumps({"ref": {**ref, "sha256": ref["sha256"].hex()}}))

    def count(self, tenant: str) -> int:
        """See `Broker`."""
        wanted: Any = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self.client.get_queue_attributes(QueueUrl=self.queues.queue(tenant), AttributeNames=wanted)
        return sum(map(int, found["Attributes"].values()))

    def letters(self, tenant: str) -> list[Letter]:
        """See `Broker`; a look, after which they are visible again."""
        url = self.queues.dead(tenant)
        found: list[Any] = []
        while page := self.client.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=60, MessageAttributeNames=["All"]
        ).get("Messages"):
            found += page
        for message in found:
            self.client.change_message_visibility(
                QueueUrl=url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0
            )
        return [_letter(message) for message in found]

    def close(self) -> None:
        """See `Broker`."""
        self.client.close()


def _name(url: str) -> str:
    return url.rpartition("/")[2]


def _letter(message: Any) -> Letter:
    fields = {name: value["StringValue"] for name, value in message["MessageAttributes"].items()}
    body: str = message["Body"]
    try:
        raw = base64.b64decode(body, validate=True)
    except ValueError:
        raw = body.encode()
    return Letter(fields["reason"], fields["attempts"], fields["source"], raw)
