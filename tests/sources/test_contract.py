"""What every source promises, on every broker: leases, budgets, hand-backs, dead letters, and nothing lost."""

from __future__ import annotations

import hashlib
import time
from collections import Counter

import pytest

from tests.sources.brokers import MIB, Broker, Host
from tests.sources.conftest import MakeHost
from tests.waiting import until
from worker.sources import sqs_polling
from worker.sources.base import BadMessage, Budget, ClaimCheck, Lease

#: Each letter is received, sent and deleted by calls of its own, and moto takes a tenth of a second for some.
FEW = 12


def jobs(count: int, *, prefix: str = "job") -> list[bytes]:
    """Distinct bodies."""
    return [f"{prefix}-{number}".encode() for number in range(count)]


def bodies(leases: list[Lease]) -> set[object]:
    """What was received."""
    return {lease.body for lease in leases}


def test_receives_what_was_sent_before_and_after_it_started(broker: Broker, make_host: MakeHost) -> None:
    """A message sent before any worker existed is received as one sent later is."""
    broker.send("acme", *jobs(3))
    host = make_host()
    assert bodies(host.receive(3)) == set(jobs(3))
    before_s = time.time()
    broker.send("acme", b"late")
    (lease,) = host.receive(1)
    assert (lease.tenant, lease.body, lease.deaths) == ("acme", b"late", 0)
    assert lease.message_id
    assert before_s - 5 < lease.sent_s < time.time() + 5


def test_budgets_hold_over_all_queues(broker: Broker, make_host: MakeHost) -> None:
    """Never more than the budget of jobs, of bytes and of a tenant, however many queues have messages."""
    tenants = [f"t{number}" for number in range(3)]
    broker.make(*tenants)
    for tenant in tenants:
        broker.send(tenant, *jobs(8))
    host = make_host()
    for _ in range(4):
        assert len(host.ask(wait_s=0.3, jobs=4, **dict.fromkeys(tenants, 50))) <= 4
    assert len(host.ask(wait_s=0.3, room=2 * MIB, **dict.fromkeys(tenants, 50))) <= 4
    one = [lease for _ in range(3) for lease in host.ask(wait_s=0.3, t0=0, t1=1)]
    assert [lease.tenant for lease in one if lease.tenant == "t0"] == []
    assert "t2" not in {lease.tenant for lease in one}


def test_more_tenants_than_room_take_turns(broker: Broker, make_host: MakeHost) -> None:
    """With room for two messages at a time, each of five tenants is received from."""
    tenants = {f"t{number}": 5 for number in range(5)}
    broker.make(*tenants)
    for tenant in tenants:
        broker.send(tenant, *jobs(3))
    host = make_host()
    seen: set[str] = set()

    def all_seen() -> bool:
        leases = host.ask(wait_s=0.2, jobs=2, **tenants)
        assert len(leases) <= 2
        seen.update(lease.tenant for lease in leases)
        host.source.ack(leases)
        return seen == set(tenants)

    until(all_seen, within_s=20, what="every tenant had a turn")


def test_an_empty_queue_costs_the_wait_and_no_error(make_host: MakeHost) -> None:
    """Nothing comes of nothing."""
    host = make_host()
    assert host.ask(wait_s=0.1) == []
    assert host.ask(wait_s=0) == []


def test_a_missing_queue_stops_nobody_else_and_is_served_once_it_is_there(
    broker: Broker, make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant without a queue costs the others nothing; nobody needs to restart when the queue comes."""
    monkeypatch.setattr(sqs_polling, "LONGEST_REST_S", 0.2)
    broker.send("acme", *jobs(3))
    host = make_host()
    assert bodies(host.receive(3, acme=100, newcomer=100)) == set(jobs(3))
    broker.make("newcomer")
    broker.send("newcomer", b"first")
    assert bodies(host.receive(1, acme=100, newcomer=100)) == {b"first"}


def test_a_queue_that_is_deleted_under_the_worker_is_served_again(
    broker: Broker, make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deleted queue takes its messages with it; made anew it is served, and the others never stop."""
    monkeypatch.setattr(sqs_polling, "LONGEST_REST_S", 0.2)
    host = make_host()
    broker.send("acme", b"before")
    (before,) = host.receive(1, acme=100, globex=100)
    broker.remove("acme")
    host.source.ack([before])
    assert host.source.extend([before]) == [before]
    broker.send("globex", b"other")
    assert bodies(host.receive(1, acme=100, globex=100)) == {b"other"}
    broker.make("acme")
    broker.send("acme", b"after")
    assert bodies(host.receive(1, acme=100, globex=100)) == {b"after"}


def test_ack_removes_and_may_be_repeated(broker: Broker, make_host: MakeHost) -> None:
    """After an ack nothing of the message is left, and a second ack after a lost reply changes nothing."""
    broker.send("acme", *jobs(FEW))
    host = make_host()
    leases = host.receive(FEW)
    host.source.ack(leases[:-1])
    host.source.ack(leases[:-1])
    until(lambda: broker.count("acme") == 1, within_s=10, what="all but one are gone")
    host.source.release(leases[-1:])
    (again,) = host.receive(1)
    assert again.key == leases[-1].key


def test_a_lapsed_lease_comes_back_to_another_host(broker: Broker, make_host: MakeHost) -> None:
    """What a host lets lapse comes to another, the same messages under the same names."""
    broker.send("acme", *jobs(5))
    lapsing = make_host("host-1", lease_s=1.0).receive(5)
    recovered = make_host("host-2", lease_s=1.0).receive(5)
    assert {(lease.key, lease.body) for lease in recovered} == {(lease.key, lease.body) for lease in lapsing}


def test_extending_keeps_a_lease_away_from_others(broker: Broker, make_host: MakeHost) -> None:
    """While its host extends it, a message stays with it for several times its lease."""
    broker.send("acme", *jobs(3))
    holder, other = make_host("host-1", lease_s=2.0), make_host("host-2", lease_s=2.0)
    leases = holder.receive(3)
    for _ in range(7):
        assert holder.source.extend(leases) == []
        assert other.gets_nothing(for_s=0.4)
    holder.source.ack(leases)
    until(lambda: broker.count("acme") == 0, within_s=10, what="all are gone")


def test_extending_reports_what_is_lost(broker: Broker, make_host: MakeHost) -> None:
    """A message that is gone, or whose lease lapsed, is reported; the others are kept."""
    broker.send("acme", *jobs(3))
    host = make_host()
    gone, lapsed, kept = host.receive(3)
    host.source.ack([gone])
    lapsed.deadline_s = 0.0
    lost = host.source.extend([gone, lapsed, kept])
    assert {id(lease) for lease in lost} == {id(gone), id(lapsed)}


def test_a_lease_past_its_deadline_is_left_alone(broker: Broker, make_host: MakeHost) -> None:
    """After its own deadline a host neither extends, releases nor dead-letters, but it may acknowledge."""
    broker.send("acme", b"x")
    now_s = [100.0]
    host = make_host(lease_s=20.0, clock=lambda: now_s[0])
    (lease,) = host.receive(1)
    now_s[0] += 30.0
    assert host.source.extend([lease]) == [lease]
    host.source.release([lease])
    assert host.source.dead_letter(lease, reason="auth") is False
    assert make_host("host-2", lease_s=60.0).gets_nothing()
    assert broker.letters("acme") == []
    assert broker.count("acme") == 1
    host.source.ack([lease])
    until(lambda: broker.count("acme") == 0, within_s=10, what="it is gone")


def test_a_hand_back_gives_messages_to_others_at_once(broker: Broker, make_host: MakeHost) -> None:
    """Nobody waits for a lease to lapse that its host has given up."""
    broker.send("acme", *jobs(3))
    first = make_host("host-1")
    leases = first.receive(3)
    first.stop_loops()
    first.source.release(leases)
    assert {lease.key for lease in make_host("host-2").receive(3)} == {lease.key for lease in leases}


def test_a_drain_hands_back_what_nobody_took(broker: Broker, make_host: MakeHost) -> None:
    """What a source has leased ahead goes back when its loops end; only what was taken stays leased."""
    broker.send("acme", *jobs(FEW))
    first, taken = make_host("host-1"), []

    def takes_some() -> bool:
        taken.extend(first.ask(wait_s=0.1, jobs=FEW))
        return bool(taken)

    until(takes_some, within_s=10, what="something came")
    first.close()
    rest = set(jobs(FEW)) - bodies(taken)
    assert bodies(make_host("host-2").receive(len(rest))) == rest


def test_engine_deaths_follow_a_job_that_is_handed_back(broker: Broker, make_host: MakeHost) -> None:
    """A job that met an engine death on one host needs one less on the next."""
    broker.send("acme", b"suspect", b"innocent")
    first = make_host("host-1")
    leases = {bytes(lease.body): lease for lease in first.receive(2) if isinstance(lease.body, bytes)}
    assert first.source.count_death(leases[b"suspect"]) == 1
    first.stop_loops()
    first.source.release(list(leases.values()))
    second = make_host("host-2")
    again = {lease.body: lease for lease in second.receive(2)}
    assert {body: lease.deaths for body, lease in again.items()} == {b"suspect": 1, b"innocent": 0}
    assert second.source.count_death(again[b"suspect"]) == 2
    second.source.ack(list(again.values()))
    until(lambda: broker.count("acme") == 0, within_s=10, what="no copy is left")


def test_a_dead_letter_holds_the_message_the_reason_and_the_attempts(broker: Broker, make_host: MakeHost) -> None:
    """A letter is the message as received, once, even when the first answer got lost."""
    broker.send("acme", b"poison")
    host = make_host()
    (lease,) = host.receive(1)
    host.source.count_death(lease)
    assert host.source.dead_letter(lease, reason="poison")
    assert host.source.dead_letter(lease, reason="poison")
    (letter,) = broker.letters("acme")
    assert letter == ("poison", "1", lease.message_id, b"poison")
    assert broker.count("acme") == 0


def test_bad_messages_become_leases_with_a_code(broker: Broker, make_host: MakeHost) -> None:
    """What is neither job nor claim check is delivered as such, and its letter shows it as it came."""
    broker.send_garbage("acme", "{not json")
    host = make_host()
    (lease,) = host.receive(1)
    assert isinstance(lease.body, BadMessage)
    assert lease.body.code == "bad_format"
    assert host.source.dead_letter(lease, reason=lease.body.code)
    (letter,) = broker.letters("acme")
    assert letter.reason == "bad_format"


def test_the_cap_is_524_288_bytes(broker: Broker, make_host: MakeHost) -> None:
    """The longest job comes whole; a longer one is a bad message, too large."""
    broker.send("acme", b"\x01" * 524_288)
    broker.send("globex", b"\x01" * 524_289)
    by_tenant = {lease.tenant: lease.body for lease in make_host().receive(2, acme=10, globex=10)}
    assert by_tenant["acme"] == b"\x01" * 524_288
    assert isinstance(by_tenant["globex"], BadMessage)
    assert by_tenant["globex"].code == "too_large"


def test_a_claim_check_is_read_and_dead_lettered_as_it_was(broker: Broker, make_host: MakeHost) -> None:
    """A claim check comes with its three parts; a malformed one is a bad message; a redrive brings it back."""
    digest = hashlib.sha256(b"long").digest()
    broker.send_ref("acme", {"url": "s3://acme-jobs/1", "sha256": digest, "bytes": 600_000})
    broker.send_ref("globex", {"url": "s3://acme-jobs/1", "sha256": b"short", "bytes": 600_000})
    host = make_host()
    by_tenant = {lease.tenant: lease for lease in host.receive(2, acme=10, globex=10)}
    assert by_tenant["acme"].body == ClaimCheck("s3://acme-jobs/1", digest, 600_000)
    assert isinstance(by_tenant["globex"].body, BadMessage)
    assert host.source.dead_letter(by_tenant["acme"], reason="body_missing")
    admin = broker.admin()
    assert admin.redrive("acme", reason="body_missing", limit=10) == 1
    admin.close()
    (again,) = host.receive(1)
    assert again.body == ClaimCheck("s3://acme-jobs/1", digest, 600_000)


def test_two_hosts_lose_nothing(broker: Broker, make_host: MakeHost) -> None:
    """Two hosts that take, hand back and acknowledge the same queues end with every job acknowledged."""
    sent = jobs(2 * FEW)
    broker.send("acme", *sent[:FEW])
    broker.send("globex", *sent[FEW:])
    hosts = [make_host("host-1"), make_host("host-2")]
    acked: Counter[object] = Counter()
    returned: set[object] = set()
    budget = Budget(5, 256 * MIB, {"acme": 5, "globex": 5})

    def all_acked() -> bool:
        for host in hosts:
            leases = [*host.source.receive(budget, wait_s=0.05), *host.source.recover(budget)]
            back = [lease for lease in leases if lease.body not in returned][::2]
            returned.update(lease.body for lease in back)
            host.source.release(back)
            kept = [lease for lease in leases if lease not in back]
            host.source.ack(kept)
            acked.update(lease.body for lease in kept)
        return set(acked) == set(sent)

    until(all_acked, within_s=45, what="every job was acknowledged")
    until(lambda: broker.count("acme") + broker.count("globex") == 0, within_s=10, what="nothing is left")


def test_backlog_counts_what_waits_is_leased_and_is_dead(broker: Broker, make_host: MakeHost) -> None:
    """The figures of every tenant, an unknown one's zero; the age is told, or said to be unknown, never made up."""
    broker.send("acme", *jobs(5))
    host = make_host()
    leases = host.receive(5)
    host.stop_loops()
    host.source.release(leases[:2])
    host.source.dead_letter(leases[2], reason="auth")
    admin = broker.admin()
    found = admin.backlog(["acme", "globex", "nobody"])
    admin.close()
    assert (found["acme"].length, found["acme"].dead) == (4, 1)
    assert found["acme"].pending in (2, 4), "Redis counts what was handed back as pending until somebody takes it"
    assert found["acme"].oldest_age_s is None or 0 <= found["acme"].oldest_age_s < 60
    for tenant in ("globex", "nobody"):
        assert (found[tenant].length, found[tenant].pending, found[tenant].dead) == (0, 0, 0)
        assert found[tenant].oldest_age_s == 0


@pytest.fixture
def dead(broker: Broker, make_host: MakeHost) -> Host:
    """A host that has dead-lettered eleven messages of acme: ten for `key_access`, one that holds no job."""
    broker.send("acme", *jobs(10))
    broker.send_garbage("acme", "{")
    host = make_host()
    for lease in host.receive(11):
        reason = lease.body.code if isinstance(lease.body, BadMessage) else "key_access"
        assert host.source.dead_letter(lease, reason=reason)
    return host


def test_redrive_moves_letters_by_reason_and_limit(broker: Broker, dead: Host) -> None:
    """Letters go back as they were sent, at most as many as asked; one without a job stays."""
    admin = broker.admin()
    assert admin.redrive("acme", reason="auth", limit=100) == 0
    assert admin.redrive("acme", reason="key_access", limit=3) == 3
    assert admin.redrive("acme", reason=None, limit=100) == 7
    assert admin.redrive("acme", reason=None, limit=100) == 0
    admin.close()
    assert bodies(dead.receive(10)) == set(jobs(10))
    assert [letter.reason for letter in broker.letters("acme")] == ["bad_format"]


def test_purge_deletes_what_no_redrive_could_serve(broker: Broker, dead: Host) -> None:
    """Letters go when their jobs' time is over, and not before."""
    admin = broker.admin()
    assert dead.died == []
    assert admin.purge_expired("acme", now_s=time.time()) == 0
    assert admin.purge_expired("acme", now_s=time.time() + 366 * 86_400) == 11
    assert admin.backlog(["acme"])["acme"].dead == 0
    admin.close()


def test_an_admin_sends_as_a_tenant_does(broker: Broker, make_host: MakeHost) -> None:
    """What a trusted producer forwards arrives like any job, under the name that it was told."""
    admin = broker.admin()
    message_id = admin.send("acme", b"forwarded")
    admin.close()
    (lease,) = make_host().receive(1)
    assert (lease.message_id, lease.body) == (message_id, b"forwarded")
