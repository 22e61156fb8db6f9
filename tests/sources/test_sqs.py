"""What is true of the source over SQS alone: receivers, the inbox, batch calls, shared queues and their settings."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from mrgc.errors import QueueUnavailable
from tests.sources.brokers import MIB, Host, SqsTestQueues
from tests.waiting import until
from worker.sources.base import BadMessage, Budget, Lease
from worker.sources.sqs import SqsSource
from worker.sources.sqs_calls import SqsCalls

JOBS = [f"job-{number}".encode() for number in range(12)]


@pytest.fixture
def queues(local_sqs: str) -> Iterator[SqsTestQueues]:
    """Queues of acme and globex."""
    made = SqsTestQueues(local_sqs)
    yield made
    made.close()


@pytest.fixture
def shared(local_sqs: str) -> Iterator[SqsTestQueues]:
    """One queue for all tenants."""
    made = SqsTestQueues(local_sqs, shared=True)
    yield made
    made.close()


Start = Callable[..., Host]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts hosts, and closes them."""
    made: list[Host] = []

    def start_one(queues: SqsTestQueues, *, lease_s: float = 600.0) -> Host:
        made.append(Host(queues.source("host", lease_s=lease_s, clock=time.monotonic)))
        return made[-1]

    yield start_one
    for host in made:
        host.tell_to_stop()
    for host in made:
        host.close()


def calls_of(host: Host) -> SqsCalls:
    """The calls of a host's source."""
    assert isinstance(host.source, SqsSource)
    return host.source._calls


def fail_once(owner: object, name: str, *, after: bool) -> list[str]:
    """Make one method raise a bug's error at its next call, before or after it did its work."""
    original = getattr(owner, name)
    failed: list[str] = []

    def call(*args: object, **kwargs: object) -> object:
        if failed:
            return original(*args, **kwargs)
        if after:
            original(*args, **kwargs)
        failed.append(name)
        raise RuntimeError("a bug")

    setattr(owner, name, call)
    return failed


@pytest.mark.parametrize("method", ["_lease", "_check_settings"], ids=["empty-handed", "with-messages-in-its-hands"])
def test_the_death_of_a_receiver_is_repaired(queues: SqsTestQueues, start: Start, method: str) -> None:
    """A receiver that dies of a bug is replaced, and what it had leased comes back without waiting for the lease."""
    queues.send("acme", *JOBS)
    host = start(queues)
    failed = fail_once(host.source, method, after=False)
    assert {lease.body for lease in host.receive(len(JOBS))} == set(JOBS)
    assert failed
    until(lambda: host.died, within_s=10, what="the supervisor saw it")


def test_a_poll_that_ends_after_the_loops_were_told_to_stop_hands_back(queues: SqsTestQueues, start: Start) -> None:
    """A message that a long poll brings into a drain is another host's at once."""
    host, other = start(queues), start(queues)
    until(lambda: host.ask(wait_s=0.1) == [] and calls_of(host).made["ReceiveMessage"], within_s=10, what="it polls")
    host.tell_to_stop()
    queues.send("acme", b"late")
    host.stop_loops()
    assert host.ask() == []
    (lease,) = other.receive(1)
    assert lease.body == b"late"


def test_nobody_polls_unless_the_intake_asks(queues: SqsTestQueues, start: Start) -> None:
    """A host that cannot serve leaves every message to the others."""
    queues.send("acme", *JOBS)
    idle, busy = start(queues), start(queues)
    assert len(busy.receive(len(JOBS))) == len(JOBS)
    assert calls_of(idle).made["ReceiveMessage"] == 0


def test_the_heartbeat_covers_what_nobody_has_taken_yet(queues: SqsTestQueues, start: Start) -> None:
    """Messages that were leased ahead stay leased for several times their lease, and are then there to be taken."""
    queues.send("acme", *JOBS)
    host, other = start(queues, lease_s=2.0), start(queues)
    source = host.source
    assert isinstance(source, SqsSource)
    source.receive(Budget(len(JOBS), 256 * MIB, {"acme": len(JOBS)}), wait_s=0)
    until(lambda: len(source._inbox.leases()) == len(JOBS), within_s=10, what="all are leased ahead")
    for _ in range(7):
        assert source.extend([]) == []
        assert other.gets_nothing(for_s=0.4)
    assert {lease.body for lease in host.ask()} == set(JOBS)


def test_a_burst_costs_a_fifth_of_a_call_per_job(queues: SqsTestQueues, start: Start) -> None:
    """Ten messages a receive and ten a delete; heartbeats of what is served soon cost nothing."""
    jobs = [b"%d" % number for number in range(400)]
    queues.send("acme", *jobs)
    host = start(queues)
    served: set[object] = set()

    def all_served() -> bool:
        leases = host.ask(wait_s=0.2, jobs=1_024)
        host.source.extend([])
        host.source.ack(leases)
        served.update(lease.body for lease in leases)
        return served == set(jobs)

    until(all_served, within_s=30, what="all are served")
    made = calls_of(host).made
    assert made["ReceiveMessage"] + made["DeleteMessageBatch"] <= 0.25 * len(jobs)
    assert made["ChangeMessageVisibilityBatch"] == 0


def test_entries_that_sqs_fails_by_its_own_fault_are_tried_again(queues: SqsTestQueues, start: Start) -> None:
    """A batch answer with failed entries is no success of theirs; the sender's own faults are not repeated."""
    queues.send("acme", *JOBS[:3])
    host = start(queues)
    leases = host.receive(3)
    client = calls_of(host)._client
    original = client.delete_message_batch
    answers: list[int] = []

    def partly(**given: Any) -> Any:
        answers.append(len(given["Entries"]))
        if len(answers) > 1:
            return original(**given)
        done = original(**given | {"Entries": given["Entries"][:1]})
        fault = {"SenderFault": False, "Code": "InternalError"}
        return done | {"Failed": [{"Id": entry["Id"], **fault} for entry in given["Entries"][1:]]}

    client.delete_message_batch = partly  # type: ignore[method-assign]
    host.source.ack(leases)
    assert answers == [3, 2]
    until(lambda: queues.count("acme") == 0, within_s=10, what="all are gone")


def test_an_entry_that_keeps_failing_is_an_outage(queues: SqsTestQueues, start: Start) -> None:
    """What SQS does not confirm is not taken for done."""
    queues.send("acme", b"job")
    host = start(queues)
    (lease,) = host.receive(1)
    failure = {"Id": "0", "SenderFault": False, "Code": "InternalError"}
    answer: Any = lambda **_: {"Failed": [failure]}  # noqa: E731  one line reads better than a function here
    calls_of(host)._client.delete_message_batch = answer  # type: ignore[method-assign]
    with pytest.raises(QueueUnavailable):
        host.source.ack([lease])


def test_one_queue_that_fails_costs_no_other_its_lease(queues: SqsTestQueues, start: Start) -> None:
    """While the calls for one tenant's queue fail, the leases of the others are renewed."""
    queues.send("acme", b"one")
    queues.send("globex", b"two")
    host = start(queues, lease_s=30.0)
    leases = {lease.tenant: lease for lease in host.receive(2, acme=5, globex=5)}
    client = calls_of(host)._client
    original = client.change_message_visibility_batch

    def denied_for_acme(**given: Any) -> Any:
        if "acme" in given["QueueUrl"]:
            return {"Failed": [{"Id": e["Id"], "SenderFault": False, "Code": "Throttled"} for e in given["Entries"]]}
        return original(**given)

    client.change_message_visibility_batch = denied_for_acme  # type: ignore[method-assign]
    before_s = {tenant: lease.deadline_s for tenant, lease in leases.items()}
    for lease in leases.values():
        lease.deadline_s -= 15.0
    with pytest.raises(QueueUnavailable):
        host.source.extend(list(leases.values()))
    assert leases["acme"].deadline_s == before_s["acme"] - 15.0
    assert leases["globex"].deadline_s > before_s["globex"] - 15.0


def test_a_missing_dead_letter_queue_is_told_and_loses_nothing(queues: SqsTestQueues, start: Start) -> None:
    """Without a place for the letter the message stays where it is, and no other tenant is stopped."""
    queues.send("acme", b"bad")
    host = start(queues, lease_s=1.0)
    (lease,) = host.receive(1)
    queues.client.delete_queue(QueueUrl=queues.queues.dead("acme"))
    with structlog.testing.capture_logs() as lines:
        assert host.source.dead_letter(lease, reason="auth") is False
    assert [line["log_level"] for line in lines] == ["error"]
    (again,) = host.receive(1)
    assert again.key == lease.key


def test_unsafe_settings_of_a_queue_are_told(queues: SqsTestQueues, start: Start) -> None:
    """A low maxReceiveCount, another dead-letter queue, or none at all: a warning each, and the queue is served."""
    attributes = {"RedrivePolicy": f'{{"deadLetterTargetArn":"{_arn(queues, "globex")}","maxReceiveCount":"5"}}'}
    queues.client.set_queue_attributes(QueueUrl=queues.queues.queue("acme"), Attributes=attributes)
    with structlog.testing.capture_logs() as lines:
        host = start(queues)
        queues.send("acme", b"job")
        assert len(host.receive(1)) == 1
        told = [line for line in lines if line["event"] == "queue is set up unsafely"]
    assert [line["tenant"] for line in told] == ["acme", "acme"]
    assert "maxReceiveCount" in told[0]["reason"]
    assert "dead-letter queue" in told[1]["reason"]


def _arn(queues: SqsTestQueues, tenant: str) -> str:
    wanted: Any = ["QueueArn"]
    found = queues.client.get_queue_attributes(QueueUrl=queues.queues.queue(tenant), AttributeNames=wanted)
    return str(found["Attributes"]["QueueArn"])


def test_a_message_over_the_cap_is_cut_to_fit_its_letter(queues: SqsTestQueues, start: Start) -> None:
    """A message of 1 MiB leaves no room for a reason beside it; what is no job anyway is cut."""
    queues.send_garbage("acme", "x" * MIB)
    host = start(queues)
    (lease,) = host.receive(1)
    assert isinstance(lease.body, BadMessage)
    assert host.source.dead_letter(lease, reason=lease.body.code)
    (letter,) = queues.letters("acme")
    assert letter.reason == "too_large"
    assert queues.count("acme") == 0


def test_an_outage_is_told_until_it_is_over(queues: SqsTestQueues, start: Start) -> None:
    """While no call succeeds every receive says so; the first answer ends it, even of an empty queue."""
    host = start(queues)
    calls = calls_of(host)
    original = calls._client.receive_message

    def unreachable(**_: Any) -> Any:
        raise QueueUnavailable("EndpointConnectionError")

    calls._client.receive_message = unreachable  # type: ignore[method-assign]

    def fails() -> bool:
        try:
            host.ask(wait_s=0.1)
        except QueueUnavailable:
            return True
        return False

    until(fails, within_s=10, what="the outage is told")
    assert fails()
    calls._client.receive_message = original  # type: ignore[method-assign]
    until(lambda: not fails(), within_s=10, what="the outage is over")


# --- one queue for all tenants --------------------------------------------------------------------------------------


def test_in_a_shared_queue_the_message_group_is_the_tenant(shared: SqsTestQueues, start: Start) -> None:
    """Each message is its group's; one without a group or of nobody known is delivered, for the intake to refuse."""
    for tenant in ("acme", "globex", "stranger"):
        shared.send(tenant, tenant.encode())
    body = base64.b64encode(b"nobody").decode()
    shared.client.send_message(QueueUrl=shared.queues.queue(""), MessageBody=body)
    found = start(shared).receive(4, acme=10, globex=10)
    assert {(lease.tenant, lease.body) for lease in found} == {
        ("acme", b"acme"), ("globex", b"globex"), ("stranger", b"stranger"), ("", b"nobody")
    }  # fmt: skip


def test_a_closed_tenant_of_a_shared_queue_is_set_aside(shared: SqsTestQueues, start: Start) -> None:
    """While nothing may be received from a tenant, its messages stay in the queue and the others' are served."""
    shared.send("acme", *JOBS)
    shared.send("globex", b"other")
    host = start(shared)
    leases: list[Lease] = []

    def other_came() -> bool:
        leases.extend(host.ask(wait_s=0.1, acme=0, globex=10))
        return bool(leases)

    until(other_came, within_s=10, what="the other tenant is served")
    assert {lease.tenant for lease in leases} == {"globex"}
    host.source.ack(leases)
    assert shared.count("acme") == len(JOBS)
    assert {lease.body for lease in host.receive(len(JOBS), acme=20, globex=10)} == set(JOBS)


def test_a_shared_queue_has_one_backlog_and_letters_by_tenant(shared: SqsTestQueues, start: Start) -> None:
    """The figure is everybody's; a redrive takes only the letters of its tenant."""
    shared.send("acme", b"a")
    shared.send("globex", b"g")
    host = start(shared)
    for lease in host.receive(2, acme=5, globex=5):
        host.source.dead_letter(lease, reason="key_access")
    admin = shared.admin()
    assert {name: queue.dead for name, queue in admin.backlog(["acme", "globex"]).items()} == {"*": 2}
    assert admin.redrive("acme", reason=None, limit=10) == 1
    assert admin.backlog(["acme"])["*"].dead == 1
    admin.close()
    (again,) = host.receive(1, acme=5, globex=5)
    assert (again.tenant, again.body) == ("acme", b"a")


def test_the_budget_of_a_shared_queue_is_that_of_all(shared: SqsTestQueues, start: Start) -> None:
    """The sum over tenants stays within the budget of jobs."""
    shared.send("acme", *JOBS)
    shared.send("globex", *JOBS)
    host = start(shared)
    for _ in range(5):
        found = host.source.receive(Budget(4, 256 * MIB, {"acme": 3, "globex": 3}), wait_s=0.2)
        assert len(found) <= 4
