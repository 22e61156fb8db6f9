"""What operators and trusted producers do to the SQS queues: send, measure, redrive, purge.

SQS has no look without a receive, so a scan of dead letters leases each of them, and shows again what it leaves; two
scans at once see a part each. The age of the oldest message SQS tells CloudWatch only (ApproximateAgeOfOldestMessage).

May import: the standard library, structlog, mrgc.errors, mrgc.wire, worker.sources. Called by the tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from mrgc.errors import TooLargeError
from mrgc.wire.queue_urls import SqsQueues
from worker.sources.base import Backlog, BadMessage
from worker.sources.messages import MAX_MESSAGE_BYTES, end_of_life_s
from worker.sources.sqs_calls import QueueMissing, SqsCalls
from worker.sources.sqs_layout import MAX_ENTRIES, REASON, attribute, encode_job, group, parse_body, sent_s

if TYPE_CHECKING:
    from mypy_boto3_sqs.type_defs import MessageTypeDef

#: Name of the one entry of a backlog that all tenants share.
EVERYBODY: Final = "*"
#: How long a scanned letter stays hidden; longer than a scan takes.
SCAN_VISIBILITY_S: Final = 300
#: Wait of a scan's receive: at least 1 asks all of SQS's servers, so that an empty answer means the end.
SCAN_WAIT_S: Final = 1
#: Letters that one scan holds at most; a longer queue takes several calls.
MAX_SCAN: Final = 10_000
#: GetQueueAttributes: messages to be had, and those that are leased.
VISIBLE: Final = "ApproximateNumberOfMessages"
LEASED: Final = "ApproximateNumberOfMessagesNotVisible"

_log = structlog.get_logger()


class SqsAdmin:
    """The QueueAdmin over SQS.

    Args:
        calls: from `sqs_calls.connect`.
        queues: where jobs and dead letters are.
    """

    def __init__(self, calls: SqsCalls, queues: SqsQueues) -> None:
        self._calls = calls
        self._queues = queues

    def send(self, tenant: str, job: bytes) -> str:
        """Append a sealed job to the tenant's queue, in the tenant's message group."""
        if len(job) > MAX_MESSAGE_BYTES:
            raise TooLargeError("job is over 524,288 bytes: send a claim check")
        return self._calls.send(self._queues.queue(tenant), encode_job(job), group=tenant)

    def backlog(self, tenants: Sequence[str]) -> dict[str, Backlog]:
        """Measure every tenant's queue and dead letters; where all share one, it is the entry `*`."""
        names = [EVERYBODY] if self._queues.is_shared else list(tenants)
        queues = self._calls.side_by_side([partial(self._counts, self._queues.queue(name)) for name in names])
        dead = self._calls.side_by_side([partial(self._counts, self._queues.dead(name)) for name in names])
        measured = {}
        for name, (visible, leased), letters in zip(names, queues, dead, strict=True):
            age_s = None if visible + leased else 0.0
            measured[name] = Backlog(visible + leased, leased, age_s, sum(letters))
        return measured

    def redrive(self, tenant: str, *, reason: str | None, limit: int) -> int:
        """Move letters back, each sent before it is deleted: a crash moves one twice at worst, for one result."""
        moved = 0

        def move(letter: MessageTypeDef) -> bool:
            nonlocal moved
            wanted = reason is None or attribute(letter, REASON) == reason
            if moved == limit or not wanted or isinstance(parse_body(letter["Body"]), BadMessage):
                return False
            self._calls.send(self._queues.queue(tenant), letter["Body"], group=tenant)
            moved += 1
            return True

        self._scan(tenant, move, is_over=lambda: moved == limit)
        return moved

    def purge_expired(self, tenant: str, *, now_s: float) -> int:
        """Delete letters whose job's `expires` has passed; without a readable header, those past every lifetime.

        Where all tenants share one queue, the tenant `*` is all of them, in one scan.
        """
        return self._scan(tenant, lambda letter: now_s >= _end_of_life_s(letter), is_over=lambda: False)

    def close(self) -> None:
        """Close the connections."""
        self._calls.close()

    def _counts(self, url: str) -> tuple[int, int]:
        try:
            found: Mapping[str, str] = self._calls.attributes(url, VISIBLE, LEASED)
        except QueueMissing as err:
            _log.warning("queue is not there", name=url.rpartition("/")[2], exc_info=err)
            found = {}
        return int(found.get(VISIBLE, 0)), int(found.get(LEASED, 0))

    def _scan(self, tenant: str, take: Callable[[MessageTypeDef], bool], *, is_over: Callable[[], bool]) -> int:
        """Look at letters of a tenant; those that `take` took are deleted, the others shown again at the end.

        Returns:
            How many were taken.
        """
        url = self._queues.dead(tenant)
        seen: set[str] = set()
        left: list[tuple[str, str]] = []
        taken = 0
        try:
            while len(seen) < MAX_SCAN and not is_over():
                page = self._calls.receive(url, count=MAX_ENTRIES, visibility_s=SCAN_VISIBILITY_S, wait_s=SCAN_WAIT_S)
                new = [letter for letter in page if letter["MessageId"] not in seen]
                if not new:
                    break
                seen.update(letter["MessageId"] for letter in new)
                chosen = [letter for letter in new if self._is_of(letter, tenant) and take(letter)]
                left += [(url, letter["ReceiptHandle"]) for letter in page if letter not in chosen]
                self._calls.delete([(url, letter["ReceiptHandle"]) for letter in chosen])
                taken += len(chosen)
        except QueueMissing:
            return 0
        finally:
            self._show(left)
        return taken

    def _is_of(self, letter: MessageTypeDef, tenant: str) -> bool:
        return not self._queues.is_shared or tenant in (EVERYBODY, group(letter))

    def _show(self, letters: Sequence[tuple[str, str]]) -> None:
        outcome = self._calls.change_visibility(letters, visibility_s=0)
        if outcome.error is not None:
            _log.warning("dead letters stay hidden for a while", count=len(outcome.failed), exc_info=outcome.error)


def _end_of_life_s(letter: MessageTypeDef) -> float:
    return end_of_life_s(parse_body(letter["Body"]), sent_s=sent_s(letter))
