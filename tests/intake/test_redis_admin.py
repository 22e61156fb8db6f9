"""What operators do to the queues: measure, redrive, purge; and what producers do: send."""

from __future__ import annotations

import time

import pytest

from mrgc.errors import TooLargeError
from tests.intake.conftest import MakeSource
from tests.intake.sealing import seal
from worker.sources.base import Budget
from worker.sources.redis_admin import RedisAdmin
from worker.sources.redis_streams import Client


def make_dead(client: Client, make_source: MakeSource, *jobs: bytes, reason: str) -> None:
    """Send jobs and dead-letter them, as an intake does."""
    for job in jobs:
        client.xadd("q:acme", {"job": job})
    source = make_source()
    for lease in source.receive(Budget(100, 1 << 28, {"acme": 100}), wait_s=0):
        source.dead_letter(lease, reason=reason)


def test_the_backlog_counts_waiting_leased_and_dead(client: Client, make_source: MakeSource) -> None:
    """A tenant that never sent is there with zeros."""
    make_dead(client, make_source, b"bad", reason="bad_format")
    admin = RedisAdmin(client)
    for _ in range(3):
        admin.send("acme", b"job")
    make_source().receive(Budget(2, 1 << 28, {"acme": 2}), wait_s=0)
    measured = admin.backlog(["acme", "globex"])
    assert (measured["acme"].length, measured["acme"].pending, measured["acme"].dead) == (3, 2, 1)
    assert 0 <= (measured["acme"].oldest_age_s or 0) < 60
    assert (measured["globex"].length, measured["globex"].oldest_age_s, measured["globex"].dead) == (0, 0.0, 0)


def test_redrive_moves_letters_back_oldest_first(client: Client, make_source: MakeSource) -> None:
    """Only what was asked for is moved: by reason, up to the limit, and never a letter without a job."""
    first, second, third = seal(), seal(), seal()
    make_dead(client, make_source, first, second, reason="auth")
    make_dead(client, make_source, third, reason="poison")
    client.xadd("dead:acme", {"reason": "auth", "attempts": 0, "source": "1-0"})
    admin = RedisAdmin(client)
    assert admin.redrive("acme", reason="poison", limit=10) == 1
    assert admin.redrive("acme", reason=None, limit=1) == 1
    assert [fields[b"job"] for _, fields in client.xrange("q:acme")] == [third, first]
    assert admin.redrive("acme", reason="auth", limit=10) == 1
    assert admin.redrive("acme", reason=None, limit=10) == 0
    assert client.xlen("dead:acme") == 1


def test_redrive_and_purge_look_at_every_page(client: Client) -> None:
    """More letters than one page are all seen."""
    admin = RedisAdmin(client)
    for index in range(150):
        client.xadd("dead:acme", {"job": b"%d" % index, "reason": "auth"})
    assert admin.redrive("acme", reason=None, limit=140) == 140
    assert admin.purge_expired("acme", now_s=time.time() + 15 * 86_400) == 10


def test_purge_deletes_only_what_no_redrive_could_serve(client: Client, make_source: MakeSource) -> None:
    """A job's own expiry counts; a letter without a readable one counts as living the longest that a job may."""
    now = int(time.time())
    make_dead(client, make_source, seal(created=now - 100, expires=now - 50), reason="expired")
    make_dead(client, make_source, seal(), b"unreadable", reason="bad_format")
    admin = RedisAdmin(client)
    assert admin.purge_expired("acme", now_s=time.time()) == 1
    assert admin.purge_expired("acme", now_s=time.time() + 3_601) == 1
    assert admin.purge_expired("acme", now_s=time.time() + 15 * 86_400) == 1
    assert client.xlen("dead:acme") == 0


def test_a_job_over_the_message_cap_is_not_sent(client: Client) -> None:
    """It would only be dead-lettered."""
    with pytest.raises(TooLargeError):
        RedisAdmin(client).send("acme", b"x" * 524_289)
