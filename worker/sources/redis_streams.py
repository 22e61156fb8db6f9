"""Jobs from Redis Streams: one stream per tenant, one consumer group, the pending list as the lease table.

A lease is the idle time of an entry in the pending list: receiving and extending set it to 0, a hand-back sets it to
an hour, and whoever finds it over the lease takes the entry. Nothing else is truth: a killed process leaves its
entries there, and a recovery takes them over.

The server is expected to run with appendonly yes, maxmemory-policy noeviction, and a proto-max-bulk-len near the
message cap, so that no reader is made to allocate more.

May import: the standard library, redis, structlog, mrgc.errors, worker.sources. Called by the intake and the tasks.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import Any, Final

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from mrgc.errors import QueueUnavailable
from worker.sources.base import Budget, Lease
from worker.sources.messages import MAX_MESSAGE_BYTES
from worker.sources.receive_plan import ReceivePlan
from worker.sources.redis_layout import (
    GROUP,
    RETURNED,
    RETURNED_IDLE_MS,
    dead_stream,
    deaths_hash,
    parse_fields,
    queue_stream,
    sent_s,
    tenant_of,
)
from worker.threads import Loop

#: Longest wait for any answer beyond a blocking read's own wait. Celery's shutdown sets a process-wide default, so
#: every connection has its own.
SOCKET_TIMEOUT_S: Final = 5.0
CONNECT_TIMEOUT_S: Final = 2.0

#: Removes this consumer's name unless entries are still pending under it: DELCONSUMER would drop those for ever.
_RETIRE: Final = """
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
end
"""

#: A redis.Redis. Its own annotations give every reply as Awaitable | Any, so checking them would check nothing.
Client = Any

_log = structlog.get_logger()


def connect(url: str) -> Client:
    """Make a client; nothing is sent before its first command.

    Args:
        url: redis://, rediss:// or unix:// as redis-py takes it.
    """
    options: dict[str, Any] = {
        "protocol": 2,
        "socket_timeout": SOCKET_TIMEOUT_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        # The callers retry with jitter and know which commands are safe to repeat.
        "retry": Retry(NoBackoff(), 0),
    }
    client: Client = redis.Redis.from_url(url, **options)
    # redis-py drops the cursor from XAUTOCLAIM … JUSTID, and without it a scan never gets past busy entries.
    client.set_response_callback("XAUTOCLAIM", lambda reply, **_options: reply)
    return client


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Turn every error of redis-py into QueueUnavailable; its text may hold the server's address, so it is dropped."""
    try:
        yield
    except redis.RedisError as err:
        raise QueueUnavailable(type(err).__name__) from err


class RedisStreams:
    """The JobSource over Redis Streams.

    Args:
        client: from `connect`.
        consumer: name of this process in the group, unique per boot.
        lease_s: how long a message stays ours without a heartbeat; the same on every host.
        clock: monotonic seconds.
    """

    def __init__(
        self, client: Client, *, consumer: str, lease_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._consumer = consumer
        self._lease_s = lease_s
        self._clock = clock
        self._grouped: set[str] = set()
        self._cursors: dict[str, bytes] = {}
        self._receiving = ReceivePlan(max_message_bytes=MAX_MESSAGE_BYTES)
        self._recovering = ReceivePlan(max_message_bytes=MAX_MESSAGE_BYTES)

    #: All streams' messages leave in one round trip.
    acks_per_call: Final = 1

    @property
    def loops(self) -> Mapping[str, Loop]:
        """Nothing: every call is one round trip."""
        return {}

    def receive(self, budget: Budget, *, wait_s: float) -> list[Lease]:
        """Take new messages from the tenants with room, whose turn it is (worker.sources.receive_plan)."""
        with mapped_errors():
            shares = self._planned(budget, self._receiving)
            if not shares:
                return []
            deadline_s = self._clock() + self._lease_s
            replies = self._read(shares)
            if replies == [] and wait_s > 0:
                # Only wakes us: one entry per stream, which every share allows; the next call takes the rest.
                asked = [tenant for tenants in shares.values() for tenant in tenants]
                replies = self._read({1: asked}, block=max(1, int(wait_s * 1_000)))
        return [
            Lease(tenant_of(key), message_id.decode(), parse_fields(fields), deadline_s, sent_s=sent_s(message_id))
            for reply in replies or ()
            for key, entries in reply
            for message_id, fields in entries
        ]

    def recover(self, budget: Budget) -> list[Lease]:
        """Take over lapsed entries, and clear from the pending list those whose message a tenant has trimmed away."""
        with mapped_errors():
            shares = self._planned(budget, self._recovering)
            deadline_s = self._clock() + self._lease_s
            return self._read_claimed(self._claim_lapsed(shares), deadline_s)

    def extend(self, leases: Sequence[Lease]) -> list[Lease]:
        """Reset idle times in one round trip per call, without raising any delivery count."""
        now_s = self._clock()
        by_tenant = _by_tenant(lease for lease in leases if lease.deadline_s > now_s)
        with mapped_errors(), self._client.pipeline(transaction=False) as pipe:
            for tenant, group in by_tenant.items():
                ids = [lease.message_id for lease in group]
                pipe.xclaim(queue_stream(tenant), GROUP, self._consumer, 0, ids, justid=True)
            replies = self._execute(pipe, [[tenant] for tenant in by_tenant])
        kept = set()
        for group, claimed in zip(by_tenant.values(), replies, strict=True):
            found = {message_id.decode() for message_id in claimed or ()}
            for lease in group:
                if lease.message_id in found:
                    lease.deadline_s = now_s + self._lease_s
                    kept.add(lease.key)
        return [lease for lease in leases if lease.key not in kept]

    def ack(self, leases: Sequence[Lease]) -> None:
        """Remove death counts, entries and their pending records, in an order in which every part is safe.

        Not in a transaction: a server out of memory refuses all of MULTI, and could then never be drained. An entry is
        gone with its XDEL; if the connection ends before its XACK, a recovery clears the pending record.
        """
        now_s = self._clock()
        with mapped_errors(), self._client.pipeline(transaction=False) as pipe:
            for tenant, group in _by_tenant(leases).items():
                # Another host can have counted a death only since our lease lapsed.
                if counted := [each.message_id for each in group if each.deaths or each.deadline_s <= now_s]:
                    pipe.hdel(deaths_hash(tenant), *counted)
                self._remove(pipe, tenant, [lease.message_id for lease in group])
            pipe.execute()

    def release(self, leases: Sequence[Lease]) -> None:
        """Age entries by an hour under nobody's name, so that the next recovery of any host takes them."""
        now_s = self._clock()
        by_tenant = _by_tenant(lease for lease in leases if lease.deadline_s > now_s)
        with mapped_errors(), self._client.pipeline(transaction=False) as pipe:
            for tenant, group in by_tenant.items():
                ids = [lease.message_id for lease in group]
                pipe.xclaim(queue_stream(tenant), GROUP, RETURNED, 0, ids, idle=RETURNED_IDLE_MS, justid=True)
            self._execute(pipe, [[tenant] for tenant in by_tenant])

    def dead_letter(self, lease: Lease, *, reason: str) -> bool:
        """Move the entry to `dead:TENANT` in one transaction.

        It is read first: if an earlier try succeeded and only its answer got lost, a second one would be a double.
        """
        if lease.deadline_s <= self._clock():
            return False
        with mapped_errors():
            found = self._client.xrange(queue_stream(lease.tenant), lease.message_id, lease.message_id)
            if not found:
                return True
            received = found[0][1]
            letter: dict[Any, Any] = {name: received[name] for name in (b"job", b"ref") if name in received}
            letter |= {"reason": reason, "attempts": lease.deaths, "source": lease.message_id}
            with self._client.pipeline(transaction=True) as pipe:
                pipe.xadd(dead_stream(lease.tenant), letter)
                pipe.hdel(deaths_hash(lease.tenant), lease.message_id)
                self._remove(pipe, lease.tenant, [lease.message_id])
                pipe.execute()
        return True

    def count_death(self, lease: Lease) -> int:
        """Add one to the count that survives this process."""
        with mapped_errors():
            lease.deaths = int(self._client.hincrby(deaths_hash(lease.tenant), lease.message_id, 1))
        return lease.deaths

    def close(self) -> None:
        """Retire this boot's consumer name where nothing is pending under it, then close the connections."""
        try:
            with mapped_errors(), self._client.pipeline(transaction=False) as pipe:
                for tenant in self._grouped:
                    pipe.eval(_RETIRE, 1, queue_stream(tenant), GROUP, self._consumer)
                pipe.execute(raise_on_error=False)
        except QueueUnavailable:
            _log.warning("consumer name left behind", consumer=self._consumer)
        finally:
            self._client.close()

    def _planned(self, budget: Budget, plan: ReceivePlan) -> dict[int, list[str]]:
        """Plan one receive over the tenants whose stream and group exist; makes them where they do not."""
        tenants: AbstractSet[str] = budget.tenants.keys()
        if not tenants <= self._grouped:
            for tenant in tenants - self._grouped:
                if budget.tenants[tenant] > 0:
                    self._make_group(tenant)
            tenants = tenants & self._grouped
        return plan.next(budget, tenants)

    def _make_group(self, tenant: str) -> None:
        try:
            self._client.xgroup_create(queue_stream(tenant), GROUP, id="0", mkstream=True)
        except redis.ResponseError as err:
            if not str(err).startswith("BUSYGROUP"):
                # Something else lies at that key; the other tenants are served.
                _log.warning("queue is not a stream", tenant=tenant)
                return
        self._grouped.add(tenant)

    def _read(self, shares: dict[int, list[str]], *, block: int | None = None) -> list[Any] | None:
        """Read each group of tenants; returns what came, or None if a stream was deleted under us and nothing came."""
        with self._client.pipeline(transaction=False) as pipe:
            for count, tenants in shares.items():
                streams = dict.fromkeys(map(queue_stream, tenants), ">")
                pipe.xreadgroup(GROUP, self._consumer, streams, count=count, block=block)
            replies = self._execute(pipe, list(shares.values()))
        for reply, (count, tenants) in zip(replies, shares.items(), strict=True):
            given = {tenant_of(key): len(entries) for key, entries in reply or ()}
            self._receiving.learn(count, dict.fromkeys(tenants, 0) | given)
        found = [reply for reply in replies if reply]
        return None if None in replies and not found else found

    def _execute(self, pipe: Any, tenants: Sequence[Sequence[str]]) -> list[Any]:
        """Execute a pipeline of one command for each group of tenants.

        Returns:
            The replies in order; None where a stream was deleted under us. Its group is made anew before the next
            read, and what the other commands brought is not lost with it.
        """
        replies: list[Any] = []
        for reply, group in zip(pipe.execute(raise_on_error=False), tenants, strict=True):
            if isinstance(reply, redis.ResponseError) and ("NOGROUP" in str(reply) or "UNBLOCKED" in str(reply)):
                self._grouped.difference_update(group)
                replies.append(None)
            elif isinstance(reply, Exception):
                raise reply
            else:
                replies.append(reply)
        return replies

    def _claim_lapsed(self, shares: dict[int, list[str]]) -> dict[str, list[bytes]]:
        asked = [(tenant, count) for count, tenants in shares.items() for tenant in tenants]
        with self._client.pipeline(transaction=False) as pipe:
            for tenant, count in asked:
                start = self._cursors.get(tenant, b"0-0")
                lapsed_ms = int(self._lease_s * 1_000)
                pipe.execute_command(
                    "XAUTOCLAIM",
                    queue_stream(tenant),
                    GROUP,
                    self._consumer,
                    lapsed_ms,
                    start,
                    "COUNT",
                    count,
                    "JUSTID",
                )
            replies = self._execute(pipe, [[tenant] for tenant, _ in asked])
        claimed = {}
        for (tenant, _), reply in zip(asked, replies, strict=True):
            if reply is not None:
                self._cursors[tenant] = reply[0]
                claimed[tenant] = reply[1]
        for count, tenants in shares.items():
            self._recovering.learn(count, {tenant: len(claimed.get(tenant, ())) for tenant in tenants})
        return claimed

    def _read_claimed(self, claimed: dict[str, list[bytes]], deadline_s: float) -> list[Lease]:
        entries = [(tenant, message_id) for tenant, ids in claimed.items() for message_id in ids]
        if not entries:
            return []
        with self._client.pipeline(transaction=False) as pipe:
            for tenant, message_id in entries:
                pipe.xrange(queue_stream(tenant), message_id, message_id)
                pipe.hget(deaths_hash(tenant), message_id)
            replies = iter(pipe.execute())
        leases, trimmed = [], defaultdict(list)
        for (tenant, message_id), found, deaths in zip(entries, replies, replies, strict=True):
            if found:
                body = parse_fields(found[0][1])
                sent = sent_s(message_id)
                leases.append(Lease(tenant, message_id.decode(), body, deadline_s, int(deaths or 0), sent))
            else:
                trimmed[tenant].append(message_id)
        for tenant, ids in trimmed.items():
            self._client.xack(queue_stream(tenant), GROUP, *ids)
        return leases

    @staticmethod
    def _remove(pipe: Any, tenant: str, ids: list[str]) -> None:
        pipe.xdel(queue_stream(tenant), *ids)
        pipe.xack(queue_stream(tenant), GROUP, *ids)


def _by_tenant(leases: Iterable[Lease]) -> dict[str, list[Lease]]:
    grouped: dict[str, list[Lease]] = defaultdict(list)
    for lease in leases:
        grouped[lease.tenant].append(lease)
    return grouped
