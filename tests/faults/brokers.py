"""The tests' own view of the two brokers: what waits, what is dead, and how to hurt it."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

import boto3
import redis

from infra.provision import ANYBODY


class DeadLetter(NamedTuple):
    """One message among the dead letters."""

    reason: str
    job: bytes


class Broker(Protocol):
    """One stack's broker, seen without the product's own code."""

    @property
    def part(self) -> str:
        """Its process."""
        ...

    @property
    def requests(self) -> Mapping[str, bytes]:
        """Bytes that tell the requests of a source: receive, ack, extend, recover, dead_letter."""
        ...

    def waiting(self, tenant: str) -> int:
        """Messages in the tenant's queue, leased ones included."""
        ...

    def dead_letters(self, tenant: str) -> list[DeadLetter]:
        """The tenant's dead letters."""
        ...

    def send(self, tenant: str, job: bytes, *, copies: int) -> None:
        """Put a sealed job into the tenant's queue several times."""
        ...

    def cut_clients(self) -> None:
        """Disconnect every client, where the broker itself has a command for it."""
        ...

    def leftovers(self, tenant: str) -> list[str]:
        """What must be gone when nothing waits."""
        ...


class RedisBroker:
    """Redis Streams.

    Args:
        url: of the queue's database.
    """

    part: Final = "redis"
    requests: Final = MappingProxyType(
        {
            "receive": b"XREADGROUP",
            "ack": b"XACK",
            "extend": b"XCLAIM",
            "recover": b"XAUTOCLAIM",
            "dead_letter": b"XADD",
        }
    )

    def __init__(self, url: str) -> None:
        self._client: Any = redis.Redis.from_url(url, socket_timeout=10)

    def waiting(self, tenant: str) -> int:
        """See `Broker.waiting`."""
        return int(self._client.xlen(f"q:{tenant}"))

    def dead_letters(self, tenant: str) -> list[DeadLetter]:
        """See `Broker.dead_letters`."""
        letters: list[tuple[bytes, Mapping[bytes, bytes]]] = self._client.xrange(f"dead:{tenant}")
        return [DeadLetter(fields[b"reason"].decode(), fields.get(b"job", b"")) for _, fields in letters]

    def send(self, tenant: str, job: bytes, *, copies: int) -> None:
        """See `Broker.send`."""
        with self._client.pipeline(transaction=False) as pipe:
            for _ in range(copies):
                pipe.xadd(f"q:{tenant}", {"job": job})
            pipe.execute()

    def cut_clients(self) -> None:
        """See `Broker.cut_clients`."""
        self._client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def leftovers(self, tenant: str) -> list[str]:
        """See `Broker.leftovers`: pending entries and death counts."""
        found = []
        groups = self._client.xinfo_groups(f"q:{tenant}") if self._client.exists(f"q:{tenant}") else []
        if any(group["pending"] for group in groups):
            found.append("pending entries")
        if self._client.exists(f"deaths:{tenant}"):
            found.append("death counts")
        return found


class SqsBroker:
    """The local SQS.

    Args:
        endpoint: of its API.
        queue_url: of a tenant's queue, with the place of the tenant's name in it.
    """

    part: Final = "sqs"
    requests: Final = MappingProxyType(
        {
            "receive": b"AmazonSQS.ReceiveMessage",
            "ack": b"AmazonSQS.DeleteMessageBatch",
            "extend": b"AmazonSQS.ChangeMessageVisibilityBatch",
            "dead_letter": b"AmazonSQS.SendMessage",
        }
    )

    def __init__(self, endpoint: str, queue_url: str) -> None:
        self._client = boto3.client(
            "sqs",
            endpoint_url=endpoint,
            region_name=ANYBODY["AWS_DEFAULT_REGION"],
            aws_access_key_id=ANYBODY["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=ANYBODY["AWS_SECRET_ACCESS_KEY"],
        )
        self._queue_url = queue_url
        #: By tenant and the message that each letter names as its source: a letter that comes twice is one.
        self._letters: dict[str, dict[str, DeadLetter]] = defaultdict(dict)

    def waiting(self, tenant: str) -> int:
        """See `Broker.waiting`."""
        names: Any = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found: Any = self._client.get_queue_attributes(QueueUrl=self._queue(tenant), AttributeNames=names)
        return sum(int(found["Attributes"][name]) for name in names)

    def dead_letters(self, tenant: str) -> list[DeadLetter]:
        """See `Broker.dead_letters`. SQS has no look without a lease, so they are taken out and kept here."""
        dead_url = f"{self._queue(tenant)}_dead"
        while messages := self._client.receive_message(
            QueueUrl=dead_url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        ).get("Messages", []):
            for message in messages:
                attributes = {name: each["StringValue"] for name, each in message["MessageAttributes"].items()}
                letter = DeadLetter(attributes["reason"], base64.b64decode(message["Body"]))
                self._letters[tenant][attributes["source"]] = letter
                self._client.delete_message(QueueUrl=dead_url, ReceiptHandle=message["ReceiptHandle"])
        return list(self._letters[tenant].values())

    def send(self, tenant: str, job: bytes, *, copies: int) -> None:
        """See `Broker.send`."""
        for first in range(0, copies, 10):
            entries: Any = [
                {"Id": str(index), "MessageBody": base64.b64encode(job).decode(), "MessageGroupId": tenant}
                for index in range(first, min(first + 10, copies))
            ]
            self._client.send_message_batch(QueueUrl=self._queue(tenant), Entries=entries)

    def cut_clients(self) -> None:
        """See `Broker.cut_clients`: SQS has no such command."""

    def leftovers(self, tenant: str) -> list[str]:  # noqa: ARG002  SQS keeps nothing beside its messages
        """See `Broker.leftovers`."""
        return []

    def _queue(self, tenant: str) -> str:
        return self._queue_url.replace("{tenant}", tenant)
