"""The tests' own view of the two brokers: what waits, what is dead, and how to hurt it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

import redis


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

    def cut_clients(self) -> int:
        """Disconnect every other client, as a failover does; returns how many."""
        return int(self._client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))

    def leftovers(self, tenant: str) -> list[str]:
        """What must be gone when nothing waits: pending entries and death counts."""
        found = []
        groups = self._client.xinfo_groups(f"q:{tenant}") if self._client.exists(f"q:{tenant}") else []
        if any(group["pending"] for group in groups):
            found.append("pending entries")
        if self._client.exists(f"deaths:{tenant}"):
            found.append("death counts")
        return found
