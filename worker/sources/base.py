"""What the intake asks of a broker: leases, and nothing that a broker without leases could not give.

A lease is the only truth about a message: whoever holds it works on it, and when it lapses somebody else may. So a
lease past its deadline is never extended, released or dead-lettered by the one who let it lapse; acknowledging it is
still right, because that happens only after its result is stored.

May import: the standard library, worker.threads. Called by the intake; implemented by the sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from worker.threads import Loop

#: A lease is renewed once less than this share of it is left, so a job that is served soon costs no renewal.
RENEW_BELOW: Final = 0.7


@dataclass(frozen=True, slots=True)
class ClaimCheck:
    """A reference to a sealed job that lies in a bucket (docs/spec.md §5)."""

    url: str
    #: SHA-256 of the sealed job, 32 bytes.
    sha256: bytes
    #: Its length; no more than this is read.
    bytes: int


@dataclass(frozen=True, slots=True)
class BadMessage:
    """A message that does not follow docs/spec.md §5."""

    #: Code of mrgc.errors, the reason it is dead-lettered with.
    code: str
    #: As it came, where the broker cannot be asked for it again.
    received: str = field(default="", repr=False)


@dataclass(eq=False, slots=True)
class Lease:
    """One message that is ours until its deadline. Compared by identity."""

    tenant: str
    #: The broker's name for the message, unique within the tenant's queue.
    message_id: str
    body: bytes | ClaimCheck | BadMessage = field(repr=False)
    #: Monotonic seconds; taken before the request that made or extended the lease was sent.
    deadline_s: float
    #: Engine deaths that happened while this job was alone in the engine, on any host.
    deaths: int = 0
    #: When it was sent, unix seconds by the broker's clock.
    sent_s: float = 0.0
    #: Its ack or dead letter is on its way, so that not finding it in the queue is no loss.
    closing: bool = False
    #: What the broker asks for in order to act on this delivery; empty where the message's id does.
    handle: str = field(default="", repr=False)
    #: Its dead letter is stored, and only the message itself is left to be removed.
    has_letter: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """Identity of the message across its leases."""
        return self.tenant, self.message_id


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that one receive may bring in."""

    jobs: int
    bytes: int
    #: Jobs by tenant; a tenant that is absent or at 0 is not received from.
    tenants: Mapping[str, int]
    #: Whether a tenant is at 0 only because of what is held of it.
    has_full_tenant: bool = False


@dataclass(frozen=True, slots=True)
class Backlog:
    """One tenant's queue at one moment."""

    #: Messages in the queue, those that are leased included.
    length: int
    #: Messages that are leased.
    pending: int
    #: Seconds since the oldest message was sent; 0 when the queue is empty. None where the broker does not tell: SQS
    #: tells CloudWatch only (ApproximateAgeOfOldestMessage).
    oldest_age_s: float | None
    #: Messages in the dead-letter queue.
    dead: int


class JobSource(Protocol):
    """A broker's queues, one per tenant. Every method may be called from any thread.

    Every method raises QueueUnavailable when the broker does not answer; the request may or may not have been carried
    out, and repeating it is safe.
    """

    @property
    def acks_per_call(self) -> int:
        """Messages of one tenant that the broker's smallest request removes: worth a short wait for as many."""
        ...

    @property
    def loops(self) -> Mapping[str, Loop]:
        """What must run beside the calls below, by name; each is run in a thread that is replaced when it dies."""
        ...

    def receive(self, budget: Budget, *, wait_s: float) -> list[Lease]:
        """Take new messages, waiting up to `wait_s` for the first; never more than the budget."""
        ...

    def recover(self, budget: Budget) -> list[Lease]:
        """Take over messages whose lease lapsed, on whichever host; never more than the budget."""
        ...

    def extend(self, leases: Sequence[Lease]) -> list[Lease]:
        """Renew leases and their deadlines, and with them whatever the source itself has received and not yet given.

        Returns:
            Those that are ours no longer: past their deadline, or gone from the queue.
        """
        ...

    def ack(self, leases: Sequence[Lease]) -> None:
        """Remove messages whose results are stored."""
        ...

    def release(self, leases: Sequence[Lease]) -> None:
        """Hand messages back so that another host gets them at once; those past their deadline are left alone."""
        ...

    def dead_letter(self, lease: Lease, *, reason: str) -> bool:
        """Move a message to the tenant's dead-letter queue.

        Args:
            lease: the message, moved as it was received.
            reason: code of mrgc.errors.

        Returns:
            False if the message was left alone, and comes back: the lease is past its deadline, or the tenant has no
            dead-letter queue.
        """
        ...

    def count_death(self, lease: Lease) -> int:
        """Record that an engine died while this job was alone in it.

        Returns:
            All such deaths of this job, on whichever host; also kept in `lease.deaths`.
        """
        ...

    def close(self) -> None:
        """Close connections. What was neither acknowledged nor released comes back when its lease lapses."""
        ...


class QueueAdmin(Protocol):
    """What operators and trusted producers do to a broker's queues. Raises QueueUnavailable like JobSource."""

    def send(self, tenant: str, job: bytes) -> str:
        """Append a sealed job to the tenant's queue.

        Returns:
            The broker's name for the message.

        Raises:
            TooLargeError: the job is over what a message may hold.
        """
        ...

    def backlog(self, tenants: Sequence[str]) -> dict[str, Backlog]:
        """Measure the queues of `tenants`."""
        ...

    def redrive(self, tenant: str, *, reason: str | None, limit: int) -> int:
        """Move dead letters back into the tenant's queue, oldest first.

        Args:
            tenant: whose.
            reason: only letters with this code; None moves all that hold a job.
            limit: at most this many.

        Returns:
            How many were moved.
        """
        ...

    def purge_expired(self, tenant: str, *, now_s: float) -> int:
        """Delete dead letters that no redrive could serve any more.

        Args:
            tenant: whose.
            now_s: unix seconds.

        Returns:
            How many were deleted.
        """
        ...

    def close(self) -> None:
        """Close connections."""
        ...
