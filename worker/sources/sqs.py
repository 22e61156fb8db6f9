"""Jobs from SQS: a queue per tenant, or one fair queue for all, the visibility timeout as the lease.

Receivers lease ahead into an inbox, as much as the intake has room for; a heartbeat renews everything that is held,
the inbox included. SQS itself brings back what nobody renews, so there is nothing to recover. A message cannot be
changed, so the engine deaths of a job are this process's own count until it hands the job back.

May import: the standard library, structlog, mrgc.errors, mrgc.wire, worker. Called by the intake.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from mrgc.errors import QueueUnavailable
from mrgc.wire.queue_urls import SqsQueues
from worker.sources.base import RENEW_BELOW, Budget, Lease
from worker.sources.sqs_calls import LONG_POLL_S, QueueDenied, QueueMissing, SqsCalls
from worker.sources.sqs_inbox import Inbox
from worker.sources.sqs_layout import (
    DEATHS,
    MAX_ENTRIES,
    attribute,
    encode_body,
    group,
    letter_attributes,
    parse_body,
    sent_s,
    unsafe_settings,
)
from worker.sources.sqs_polling import Poll, PollPlan
from worker.threads import Loop

if TYPE_CHECKING:
    from mypy_boto3_sqs.type_defs import MessageTypeDef

#: Threads that poll. Eight saturate two cores; more would only wait.
RECEIVERS: Final = 8
#: How long a message of a tenant that must wait stays hidden, in a queue that tenants share.
SET_ASIDE_S: Final = 5

_log = structlog.get_logger()


class SqsSource:
    """The JobSource over SQS.

    Args:
        calls: from `sqs_calls.connect`.
        queues: where jobs and dead letters are.
        lease_s: how long a message stays ours without a heartbeat.
        clock: monotonic seconds.
    """

    def __init__(
        self, calls: SqsCalls, queues: SqsQueues, *, lease_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._calls = calls
        self._queues = queues
        self._lease_s = lease_s
        #: SQS counts whole seconds; ours may end earlier, never later.
        self._visibility_s = math.ceil(lease_s)
        self._clock = clock
        plan = PollPlan(receivers=RECEIVERS, wait_s=LONG_POLL_S)
        self._inbox = Inbox(plan, is_shared=queues.is_shared, clock=clock)
        #: Queues whose settings were looked at.
        self._checked: set[str] = set()

    #: A call deletes ten messages as dearly as one.
    acks_per_call: Final = MAX_ENTRIES

    @property
    def loops(self) -> Mapping[str, Loop]:
        """The receivers."""
        return {f"sqs receiver {number}": self._receive_until for number in range(RECEIVERS)}

    def receive(self, budget: Budget, *, wait_s: float) -> list[Lease]:
        """Take what the receivers have leased; asking is also what makes them lease more."""
        return [lease for lease in self._inbox.take(budget, wait_s=wait_s) if lease.deadline_s > self._clock()]

    def recover(self, budget: Budget) -> list[Lease]:  # noqa: ARG002  SQS shows lapsed messages to every receive
        """Return nothing: a lapsed message is received like a new one."""
        return []

    def extend(self, leases: Sequence[Lease]) -> list[Lease]:
        """Renew visibility timeouts, ten a call, with those of the inbox that are old enough."""
        self._hand_back(self._inbox.take_unwanted())
        now_s = self._clock()
        waiting = [lease for lease in self._inbox.leases() if lease.deadline_s - now_s < self._lease_s * RENEW_BELOW]
        alive = [lease for lease in (*leases, *waiting) if lease.deadline_s > now_s]
        outcome = self._calls.change_visibility(self._handles(alive), visibility_s=self._visibility_s)
        lost = {id(alive[position]) for position in outcome.refused}
        for position, lease in enumerate(alive):
            if position not in outcome.refused | outcome.failed:
                lease.deadline_s = now_s + self._lease_s
        self._inbox.remove([lease for lease in waiting if id(lease) in lost or lease.deadline_s <= now_s])
        # After the deadlines that were won: one queue's failure must not cost the leases of the others.
        outcome.ensure()
        return [lease for lease in leases if id(lease) in lost or lease.deadline_s <= now_s]

    def ack(self, leases: Sequence[Lease]) -> None:
        """Delete messages; one that was leased anew meanwhile comes back, and its result is found stored."""
        self._calls.delete(self._handles(leases))

    def release(self, leases: Sequence[Lease]) -> None:
        """Show messages to everybody again; one with engine deaths is sent anew with their count."""
        now_s = self._clock()
        alive = [lease for lease in leases if lease.deadline_s > now_s]
        plain = [lease for lease in alive if not lease.deaths]
        self._calls.change_visibility(self._handles(plain), visibility_s=0).ensure()
        for lease in alive:
            if lease.deaths:
                self._send_again(lease)

    def dead_letter(self, lease: Lease, *, reason: str) -> bool:
        """Send the letter, then delete the message; a crash between the two leaves both, and the letter comes twice."""
        if lease.deadline_s <= self._clock():
            return False
        if not lease.has_letter:
            try:
                self._send_letter(lease, reason)
            except (QueueMissing, QueueDenied) as err:
                _log.error("dead-letter queue refuses; the message comes back", tenant=lease.tenant, exc_info=err)
                return False
            lease.has_letter = True
        self._calls.delete(self._handles([lease]))
        return True

    def count_death(self, lease: Lease) -> int:
        """Count in this process; a hand-back takes the count along, a crash forgets it."""
        lease.deaths += 1
        return lease.deaths

    def close(self) -> None:
        """Hand back what nobody took, and close the connections."""
        self._hand_back(self._inbox.close())
        self._calls.close()

    # --- receivers --------------------------------------------------------------------------------------------------

    def _receive_until(self, stop: threading.Event) -> None:
        while not stop.is_set():
            poll = self._inbox.next_poll()
            if poll is not None:
                self._receive_once(poll, stop)
        # Nobody will ask again.
        self._hand_back(self._inbox.close())

    def _receive_once(self, poll: Poll, stop: threading.Event) -> None:
        leases: list[Lease] = []
        try:
            leases = self._lease(poll)
            self._check_settings(poll.tenant)
        except (QueueMissing, QueueDenied) as err:
            # One tenant's queue; the others are served.
            _log.warning("queue is not served", tenant=poll.tenant, reason=str(err), exc_info=err)
            self._inbox.failed(poll, None, for_long=True)
        except QueueUnavailable as err:
            self._inbox.failed(poll, err)
        except BaseException:
            # A bug of ours ends this thread, not the messages in its hands.
            self._inbox.failed(poll, None)
            self._hand_back(leases)
            raise
        else:
            if stop.is_set():
                self._hand_back(leases)
            else:
                self._hand_back(self._inbox.put(poll, leases), in_s=SET_ASIDE_S)

    def _lease(self, poll: Poll) -> list[Lease]:
        asked_s = self._clock()
        received = self._calls.receive(
            self._queues.queue(poll.tenant),
            count=poll.count,
            # The timeout begins when the message is found, at the latest when the poll ends.
            visibility_s=self._visibility_s + poll.wait_s,
            wait_s=poll.wait_s,
        )
        read = partial(self._read, tenant=poll.tenant, deadline_s=asked_s + poll.wait_s + self._lease_s)
        return [read(message) for message in received]

    def _read(self, message: MessageTypeDef, *, tenant: str, deadline_s: float) -> Lease:
        deaths = attribute(message, DEATHS)
        return Lease(
            tenant or group(message),
            message["MessageId"],
            parse_body(message["Body"]),
            deadline_s,
            deaths=int(deaths) if deaths.isdecimal() and len(deaths) < 3 else 0,
            sent_s=sent_s(message),
            handle=message["ReceiptHandle"],
        )

    def _check_settings(self, tenant: str) -> None:
        url = self._queues.queue(tenant)
        if url in self._checked:
            return
        self._checked.add(url)
        try:
            found = unsafe_settings(self._calls.attributes(url, "RedrivePolicy"), dead_url=self._queues.dead(tenant))
        except QueueUnavailable:
            found = ["settings cannot be read: allow sqs:GetQueueAttributes"]
        for text in found:
            _log.warning("queue is set up unsafely", tenant=tenant, reason=text)

    # --- shared steps -----------------------------------------------------------------------------------------------

    def _hand_back(self, leases: Sequence[Lease], *, in_s: int = 0) -> None:
        now_s = self._clock()
        alive = [lease for lease in leases if lease.deadline_s > now_s]
        outcome = self._calls.change_visibility(self._handles(alive), visibility_s=in_s)
        if outcome.error is not None:
            _log.warning("leases left to lapse", count=len(outcome.failed), exc_info=outcome.error)

    def _send_letter(self, lease: Lease, reason: str) -> None:
        attributes = letter_attributes(lease, reason=reason)
        self._calls.send(
            self._queues.dead(lease.tenant), encode_body(lease.body), group=lease.tenant, attributes=attributes
        )

    def _send_again(self, lease: Lease) -> None:
        url = self._queues.queue(lease.tenant)
        self._calls.send(url, encode_body(lease.body), group=lease.tenant, attributes={DEATHS: str(lease.deaths)})
        self._calls.delete(self._handles([lease]))

    def _handles(self, leases: Sequence[Lease]) -> list[tuple[str, str]]:
        return [(self._queues.queue(lease.tenant), lease.handle) for lease in leases]
