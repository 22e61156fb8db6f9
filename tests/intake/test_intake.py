"""The intake end to end, on a real queue and a real directory of results, with an engine that misbehaves on request."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mrgc.errors import (
    AuthenticationError,
    EnclaveUnreachable,
    KeyBusyError,
    MrgcError,
    QueueUnavailable,
    TrustFloorError,
)
from mrgc.wire import strict_cbor
from tests.intake.conftest import Host, StartHost
from tests.intake.peer_engine import Death, Outcomes, PeerEngine, result_of, serve_all
from tests.intake.sealing import REGISTRY, object_name, seal, stored
from tests.waiting import until
from worker import leases
from worker.dispatch import Dispatcher
from worker.engine_protocol import WAITING, Health, Served
from worker.job import Job


def assert_one_more_is_served(host: Host) -> None:
    """After whatever happened, a good job still gets its result."""
    job = seal()
    host.send(job)
    host.wait_stored(job)


def test_jobs_of_two_tenants_are_stored_and_acknowledged(start_host: StartHost) -> None:
    """Every job leaves the queue with one result under its own name."""
    jobs = [seal(tenant) for tenant in ("acme", "globex") for _ in range(100)]
    host = start_host()
    host.send(*jobs)
    host.wait_stored(*jobs)
    host.wait_acked("globex")
    assert [stored(host.results, job) for job in jobs] == [result_of(job) for job in jobs]
    assert sum(1 for path in host.results.rglob("*") if path.is_file()) == len(jobs)
    assert host.dead_letters() == []


def test_a_backlog_is_served_in_full_batches(start_host: StartHost, engine: PeerEngine) -> None:
    """Jobs that wait while the engine is busy leave together, never over the limit, never two models in one."""
    engine.may_answer.clear()
    jobs = [seal() for _ in range(60)]
    host = start_host(max_batch_jobs=16, max_inflight_jobs=100)
    host.send(*jobs)
    until(lambda: len(engine.batches) == 3, within_s=10, what="the engine has its next batches")
    engine.may_answer.set()
    host.wait_stored(*jobs)
    sizes = [len(batch) for batch in engine.batches]
    assert max(sizes) == 16
    assert len(sizes) <= 3 + 4


def test_back_pressure_leaves_the_rest_in_the_queue(start_host: StartHost, engine: PeerEngine) -> None:
    """At the bound, or with room for less than a batch, nothing more is leased."""
    engine.may_answer.clear()
    host = start_host(max_inflight_jobs=10, max_batch_jobs=4)
    jobs = [seal() for _ in range(50)]
    host.send(*jobs)
    until(lambda: host.leased() > 10 - 4, within_s=10, what="the bound is near")
    engine.may_answer.set()

    def all_stored_within_the_bound() -> bool:
        assert host.leased() <= 10
        return all(stored(host.results, job) for job in jobs)

    until(all_stored_within_the_bound, within_s=10, what="results are stored")
    host.wait_acked()


def test_a_tenant_at_its_bound_is_served_as_its_jobs_end(
    start_host: StartHost, engine: PeerEngine, registry_file: Path
) -> None:
    """Its quota binds it alone, and its next job comes when one ends, not when messages of others come or do not."""
    registry_file.write_text(REGISTRY.replace("[tenants.acme]", "[tenants.acme]\nmax_inflight_jobs = 1"))
    host = start_host()
    engine.may_answer.clear()
    jobs = [seal() for _ in range(100)]
    host.send(*jobs)
    until(lambda: engine.batches, within_s=10, what="the first job is in the engine")
    other = [seal("globex") for _ in range(3)]
    host.send(*other)
    until(lambda: host.leased("globex") == len(other), within_s=10, what="the other tenant's jobs are leased")
    assert host.leased() == 1
    engine.may_answer.set()
    # Each would take a quarter of a second if the receiver waited at the broker.
    host.wait_stored(*jobs, *other, within_s=15)
    assert [len(batch) for batch in engine.batches if batch[0] in jobs] == [1] * len(jobs)


def test_a_message_that_is_no_job_is_dead_lettered_with_a_reason(start_host: StartHost) -> None:
    """Statement 7: garbage of every kind ends in the dead letters, and the next good job is served."""
    host = start_host()
    good = seal()
    for fields in (
        {"job": b"garbage"},
        {"task": "tasks.infer", "body": "gASV"},
        {"job": b"mrgc" + b"\xff" * 100},
        {"ref": strict_cbor.encode({"url": "s3://elsewhere/x", "sha256": bytes(32), "bytes": 10})},
        {"ref": strict_cbor.encode({"url": "file:///etc/passwd", "sha256": bytes(32), "bytes": 10})},
        {"ref": strict_cbor.encode({"url": "s3://acme-jobs/x", "sha256": bytes(32), "bytes": 1 << 40})},
    ):
        host.client.xadd("q:acme", fields)
    host.send(good)
    host.wait_stored(good)
    reasons = Counter(reason for reason, _ in host.dead_letters())
    assert reasons == {"bad_format": 3, "body_missing": 2, "too_large": 1}


@pytest.mark.parametrize(
    ("changes", "reason", "has_hint"),
    [
        ({"tenant": "globex", "context": {"mrgc:use": "job", "mrgc:tenant": "globex"}}, "not_admitted", False),
        ({"key_arn": "arn:aws:kms:eu-west-1:123456789012:key/other"}, "not_admitted", True),
        ({"model": "other"}, "not_admitted", True),
        ({"result": "s3://elsewhere/"}, "not_admitted", True),
        ({"created": 1_000_000, "expires": 1_000_001}, "expired", True),
        # To a host whose clock is late every job is; the enclave judges by its own clock.
        ({"created": 4_000_000_000, "expires": 4_000_000_001}, None, False),
        ({"items": 16_384, "model": "m"}, None, False),
    ],
)
def test_only_what_the_registry_allows_is_admitted(
    start_host: StartHost, engine: PeerEngine, changes: dict[str, Any], reason: str | None, has_hint: bool
) -> None:
    """Statement 1: outside its tenant's entry a job never reaches the engine; its tenant may read why."""
    host = start_host()
    job = seal(**changes)
    host.client.xadd("q:acme", {"job": job})
    if reason is None:
        host.wait_stored(job)
        return
    host.wait_acked()
    assert host.dead_letters() == [(reason, job)]
    assert engine.batches == []
    hint = stored(host.results, job, suffix="refused")
    assert hint == (reason.encode() if has_hint else None)
    assert_one_more_is_served(host)


def test_a_result_that_cannot_fit_is_refused_before_the_engine(start_host: StartHost, engine: PeerEngine) -> None:
    """Items times dimensions times four over the cap is refused from the header alone."""
    host = start_host(max_body_bytes=100_000, max_batch_bytes=1 << 20, max_inflight_bytes=8 << 20)
    job = seal(items=16_384)
    host.send(job)
    host.wait_acked()
    assert host.dead_letters() == [("result_too_large", job)]
    assert engine.batches == []


def test_one_refused_job_does_not_disturb_its_batch_mates(start_host: StartHost, engine: PeerEngine) -> None:
    """Outcomes are applied one by one: refused jobs go to the dead letters, the others are stored."""
    jobs = [seal() for _ in range(8)]
    refused: dict[bytes, MrgcError] = {jobs[2]: AuthenticationError(), jobs[5]: TrustFloorError("floor")}

    def answer(batch: list[bytes]) -> Outcomes:
        return [refused.get(job) or Served("ok", result_of(job)) for job in batch]

    engine.answer = answer
    host = start_host()
    host.send(*jobs)
    host.wait_stored(*(job for job in jobs if job not in refused))
    assert sorted(host.dead_letters()) == sorted([("auth", jobs[2]), ("trust_floor", jobs[5])])
    assert stored(host.results, jobs[2], suffix="refused") == b"auth"
    assert stored(host.results, jobs[2]) is None


def test_an_outage_behind_the_engine_counts_against_no_job(start_host: StartHost, engine: PeerEngine) -> None:
    """While the enclave is away nothing is lost or dead-lettered, receiving pauses, and it ends by itself."""
    away = [True]

    def answer(batch: list[bytes]) -> Outcomes:
        return [EnclaveUnreachable() for _ in batch] if away[0] else serve_all(batch)

    engine.answer = answer
    host = start_host(max_batch_jobs=4)
    first = seal()
    host.send(first)
    until(lambda: "enclave_unreachable" in host.intake.readiness(), within_s=10, what="readiness tells the reason")
    jobs = [first, *(seal() for _ in range(100))]
    host.send(*jobs[1:])
    until(lambda: len(engine.batches) >= 5, within_s=20, what="some tries failed")
    # Only what it takes to see whether the outage is over was received.
    assert host.leased() <= 4
    away[0] = False
    host.wait_stored(*jobs, within_s=20)
    assert host.dead_letters() == []
    assert host.intake.readiness() == []


def test_one_tenants_kms_outage_is_its_own(start_host: StartHost, engine: PeerEngine) -> None:
    """While one tenant's KMS fails, the other tenant is served and the host stays ready."""
    away = [True]

    def answer(batch: list[bytes]) -> Outcomes:
        return [KeyBusyError() if away[0] and b"acme" in job[:600] else Served("ok", result_of(job)) for job in batch]

    engine.answer = answer
    host = start_host()
    waiting, served = [seal("acme") for _ in range(3)], [seal("globex") for _ in range(40)]
    host.send(*waiting, *served)
    until(lambda: all(stored(host.results, job) for job in served), within_s=10, what="the other tenant is served")
    assert host.intake.readiness() == []
    away[0] = False
    host.wait_stored(*waiting, within_s=20)


def test_an_engine_that_is_not_healthy_is_given_nothing(start_host: StartHost, engine: PeerEngine) -> None:
    """A waiting engine makes the host unready with its reason, and the queue keeps its messages."""
    host = start_host()
    engine.health = Health(WAITING, "no_token", {})
    until(lambda: host.intake.readiness() == ["no_token"], within_s=10, what="readiness tells the reason")
    job = seal()
    host.send(job)
    engine.health = Health("healthy", "", {})
    host.wait_stored(job)


def test_an_engine_death_is_survived(start_host: StartHost, engine: PeerEngine) -> None:
    """Jobs that were in an engine when it died are served by the next one, each stored once."""
    died: list[int] = []

    def answer(batch: list[bytes]) -> Outcomes:
        if not died:
            died.append(len(batch))
            raise Death
        return serve_all(batch)

    engine.answer = answer
    host = start_host(max_batch_jobs=16)
    jobs = [seal() for _ in range(60)]
    host.send(*jobs)
    host.wait_stored(*jobs)
    assert host.dead_letters() == []
    assert engine.deaths == 1


def test_a_poison_job_is_found_by_halving_and_its_mates_are_served(start_host: StartHost, engine: PeerEngine) -> None:
    """Statement 10: the job that kills engines is alone at two deaths and then dead-lettered; no other job is."""
    jobs = [seal() for _ in range(32)]
    poison = jobs[21]

    def answer(batch: list[bytes]) -> Outcomes:
        if poison in batch:
            raise Death
        return serve_all(batch)

    engine.answer = answer
    host = start_host(max_batch_jobs=16, lease_s=5.0)
    host.send(*jobs)
    host.wait_stored(*(job for job in jobs if job != poison), within_s=20)
    host.wait_acked()
    ((_, letter),) = host.client.xrange("dead:acme")
    assert (letter[b"reason"], letter[b"job"], letter[b"attempts"]) == (b"poison", poison, b"2")
    assert engine.deaths <= 8
    assert_one_more_is_served(host)


def test_deaths_are_remembered_across_hosts(start_host: StartHost, engine: PeerEngine) -> None:
    """A job that was alone at one death on another host needs only one more here."""
    poison = seal()

    def answer(batch: list[bytes]) -> Outcomes:
        if poison in batch:
            raise Death
        return serve_all(batch)

    engine.answer = answer
    host = start_host()
    message_id = host.client.xadd("q:acme", {"job": poison})
    until(lambda: host.client.hget("deaths:acme", message_id) in (b"1", None), within_s=10, what="a death is counted")
    host.intake.drain(within_s=0)
    other = start_host()
    other.wait_acked()
    assert host.dead_letters() == [("poison", poison)]
    assert engine.deaths == 2


def test_a_job_delivered_many_times_leaves_one_unchanged_result(start_host: StartHost) -> None:
    """Statement 4: duplicates, on two hosts at once, are acknowledged without touching the first result."""
    job = seal()
    hosts = [start_host(), start_host()]
    hosts[0].send(job)
    hosts[0].wait_stored(job)
    first = (hosts[0].results / object_name(job)).stat()
    hosts[0].send(*[job] * 100)
    hosts[0].wait_acked()
    again = (hosts[0].results / object_name(job)).stat()
    assert (again.st_ino, again.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    assert hosts[0].dead_letters() == []


def test_a_drain_finishes_what_it_can_and_hands_the_rest_back(start_host: StartHost, engine: PeerEngine) -> None:
    """A drain with a stuck engine ends at its deadline, and another host gets the messages at once."""
    host = start_host(lease_s=60.0)
    engine.may_answer.clear()
    jobs = [seal() for _ in range(10)]
    host.send(*jobs)
    until(lambda: engine.batches, within_s=10, what="the engine has a batch")
    began = time.monotonic()
    host.intake.drain(within_s=0.2)
    assert time.monotonic() - began < 10
    engine.may_answer.set()
    other = start_host(lease_s=60.0)
    other.wait_stored(*jobs)


def test_a_drain_waits_for_the_engine(start_host: StartHost, engine: PeerEngine) -> None:
    """What the engine finishes within the deadline is stored and acknowledged, and nothing is handed back."""
    host = start_host()
    engine.may_answer.clear()
    job = seal()
    host.send(job)
    until(lambda: engine.batches, within_s=10, what="the engine has the job")
    host.intake.stop_receiving()
    late = seal()
    host.send(late)
    engine.may_answer.set()
    host.intake.drain(within_s=10)
    assert stored(host.results, job) == result_of(job)
    assert stored(host.results, late) is None
    assert host.client.xlen("q:acme") == 1


def test_jobs_that_expire_while_they_wait_never_reach_the_engine(start_host: StartHost, engine: PeerEngine) -> None:
    """Statement 4: a job whose time comes in the batcher is dead-lettered as expired."""
    host = start_host(max_batch_jobs=1, max_inflight_jobs=10)
    engine.may_answer.clear()
    now = int(time.time())
    blockers = [seal() for _ in range(3)]
    host.send(*blockers)
    until(lambda: len(engine.batches) == 3, within_s=10, what="the engine is full")
    short = seal(created=now, expires=now + 2)
    host.send(short)
    until(lambda: host.dead_letters() == [("expired", short)], within_s=10, what="it expired")
    engine.may_answer.set()
    host.wait_stored(*blockers)
    assert [short] not in engine.batches


def test_a_registry_change_is_followed_without_a_restart(start_host: StartHost) -> None:
    """A tenant that is added is served; a broken file leaves the last good one in force."""
    host = start_host()
    file = host.intake._registry._path
    text = file.read_text()
    file.write_text("[tenants.acme\n")
    assert_one_more_is_served(host)
    file.write_text(text.replace("globex", "initech"))
    job = seal("initech")
    host.send(job)
    host.wait_stored(job)


def test_a_registry_change_drops_no_lease(start_host: StartHost, engine: PeerEngine) -> None:
    """What is held when tenants come, go and change stays held, is served once, and nothing of it is handed back."""
    host = start_host(lease_s=60.0, max_batch_jobs=2)
    engine.may_answer.clear()
    acme, globex = [seal() for _ in range(8)], [seal("globex") for _ in range(8)]
    host.send(*acme, *globex)
    until(lambda: (host.leased(), host.leased("globex")) == (8, 8), within_s=10, what="all are held")
    file = host.intake._registry._path
    file.write_text(file.read_text().replace("globex", "initech").replace("weight = 2", "weight = 9"))
    new = seal("initech")
    host.send(new)
    until(lambda: host.leased("initech") == 1, within_s=10, what="the new entries are in force")
    assert (host.leased(), host.leased("globex")) == (8, 8)
    engine.may_answer.set()
    host.wait_stored(*acme, *globex, new)
    host.wait_acked("globex")
    runs = Counter(job for batch in engine.batches for job in batch)
    assert runs == Counter([*acme, *globex, new])
    assert host.dead_letters() == host.dead_letters("globex") == []


def fail_once(owner: object, name: str, error: Exception, *, after: bool = False) -> list[str]:
    """Make one method raise at its next call, before or after it did its work; tells when it has."""
    original = getattr(owner, name)
    failed: list[str] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        if failed:
            return original(*args, **kwargs)
        if after:
            original(*args, **kwargs)
        failed.append(name)
        raise error

    setattr(owner, name, call)
    return failed


@pytest.mark.parametrize(
    ("part", "method"),
    [("_source", "receive"), ("_source", "recover"), ("_source", "ack"), ("_dispatcher", "_submit_all")],
)
def test_a_dead_thread_is_replaced(start_host: StartHost, part: str, method: str) -> None:
    """Whichever loop dies of a bug, another thread goes on where it stopped, and nothing is lost."""
    host = start_host()
    failed = fail_once(getattr(host.intake, part), method, RuntimeError("a bug"))
    jobs = [seal() for _ in range(5)]
    host.send(*jobs)
    until(lambda: failed, within_s=10, what="the loop died")
    host.wait_stored(*jobs)
    assert_one_more_is_served(host)


def test_a_message_that_meets_a_bug_is_dead_lettered(start_host: StartHost) -> None:
    """Even a message that our own code stumbles over leaves with a reason, and stops nobody."""
    host = start_host()
    fail_once(host.intake._reception, "_admit", ZeroDivisionError("a bug"))
    job = seal()
    host.send(job)
    host.wait_acked()
    assert host.dead_letters() == [("internal", job)]
    assert_one_more_is_served(host)


def test_a_message_that_was_forgotten_comes_back(start_host: StartHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that a bug keeps from ever settling is let go in time, and is served at its next delivery."""
    monkeypatch.setattr(leases, "MAX_HELD_S", 0.5)
    forgotten: list[Job] = []
    add = Dispatcher.add

    def forget_the_first(dispatcher: Dispatcher, jobs: Sequence[Job]) -> None:
        if forgotten:
            add(dispatcher, jobs)
        else:
            forgotten.extend(jobs)

    # Of the class: an intake hands its dispatcher's method on when it is made.
    monkeypatch.setattr(Dispatcher, "add", forget_the_first)
    host = start_host()
    job = seal()
    host.send(job)
    host.wait_stored(job)
    assert len(forgotten) == 1


@pytest.mark.parametrize("method", ["ack", "receive", "recover", "extend"])
def test_a_lost_reply_of_the_broker_loses_and_doubles_nothing(start_host: StartHost, method: str) -> None:
    """A command whose answer got lost was carried out; repeating it, or doing without it, is safe."""
    host = start_host()
    failed = fail_once(host.intake._source, method, QueueUnavailable(), after=True)
    jobs = [seal() for _ in range(20)]
    host.send(*jobs)
    host.wait_stored(*jobs)
    until(lambda: failed, within_s=10, what="the reply got lost")
    assert sum(1 for path in host.results.rglob("*") if path.is_file()) == len(jobs)
    assert host.dead_letters() == []
    until(lambda: not host.intake.readiness(), within_s=10, what="the host is ready again")


def test_a_lost_reply_to_a_dead_letter_makes_no_second_one(start_host: StartHost) -> None:
    """A dead letter whose answer got lost is not written twice."""
    host = start_host()
    failed = fail_once(host.intake._source, "dead_letter", QueueUnavailable(), after=True)
    host.client.xadd("q:acme", {"job": b"garbage"})
    host.wait_acked()
    assert_one_more_is_served(host)
    assert failed
    assert host.dead_letters() == [("bad_format", b"garbage")]


def test_a_store_outage_keeps_results_and_stops_receiving(start_host: StartHost) -> None:
    """While the store refuses, results wait, readiness says so, and afterwards all are stored."""
    host = start_host()
    acme = host.results / "acme"
    acme.write_text("a file where the tenant's directory should be")
    job = seal()
    host.send(job)
    until(lambda: host.intake.readiness() == ["store_unavailable"], within_s=10, what="the outage is told")
    assert host.client.xlen("q:acme") == 1
    acme.unlink()
    host.wait_stored(job)
    until(lambda: not host.intake.readiness(), within_s=10, what="the host is ready again")
