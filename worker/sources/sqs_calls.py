"""Calls to SQS: batches of ten, side by side, failed entries tried again, and every error told apart once.

boto3's default chain finds the credentials. May import: the standard library, boto3, botocore, structlog, mrgc.errors,
mrgc.wire, worker.backoff, worker.sources. Called by worker.sources.sqs and worker.sources.sqs_admin.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import boto3
import structlog
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from mrgc.errors import ConfigError, QueueUnavailable
from mrgc.wire.queue_urls import SqsQueues
from worker.backoff import Backoff
from worker.sources.sqs_layout import chunks

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import MessageTypeDef

#: Longest long poll. AWS recommends 20 s to save calls; with 2 s a drain waits for every poll that is under way, so no
#: message is leased to a poll that nobody reads. An idle queue costs half a call per second.
LONG_POLL_S: Final = 2
#: Batch calls side by side, beside the receivers' own.
CALLERS: Final = 8
CONNECT_TIMEOUT_S: Final = 2.0
#: Longest wait for any answer beyond a long poll's own wait.
READ_TIMEOUT_S: Final = 5.0
#: Tries of the entries of one batch that SQS failed by its own fault.
TRIES: Final = 4
FIRST_RETRY_S: Final = 0.05
LONGEST_RETRY_S: Final = 1.0

#: This queue does not exist, or this role may not do that with it; other queues are not concerned.
_MISSING: Final = frozenset({"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"})
_DENIED: Final = frozenset({"AccessDenied", "AccessDeniedException", "KMS.AccessDeniedException"})

T = TypeVar("T")

_log = structlog.get_logger()

_METHODS: Final = {
    "ChangeMessageVisibilityBatch": "change_message_visibility_batch",
    "DeleteMessageBatch": "delete_message_batch",
}


class QueueMissing(QueueUnavailable):
    """Raised when one queue does not exist."""


class QueueDenied(QueueUnavailable):
    """Raised when the role may not do this with one queue."""


class Entry(NamedTuple):
    """One message of a batch call."""

    url: str
    #: Its members in that call, but for Id.
    members: Mapping[str, Any]
    #: What it counts against the 1 MiB of a call that sends.
    size_bytes: int = 0


@dataclass(slots=True)
class Batched:
    """What became of the entries of one operation, by their positions."""

    #: SQS says that they are the sender's fault: too old a handle, or no right to this queue.
    refused: set[int] = field(default_factory=set)
    #: Nobody knows: the call failed.
    failed: set[int] = field(default_factory=set)
    #: Why, if any failed.
    error: QueueUnavailable | None = None

    def ensure(self) -> None:
        """Raise if nobody knows of some entry what became of it."""
        if self.error is not None:
            raise self.error


def connect(queues: SqsQueues, *, receivers: int = 0) -> SqsCalls:
    """Make a client; nothing is sent before its first call.

    Args:
        queues: where they are.
        receivers: threads that will poll at once.

    Raises:
        ConfigError: neither the URL nor boto3's settings name a region, or boto3 is set up wrongly.
    """
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=LONG_POLL_S + READ_TIMEOUT_S,
        max_pool_connections=receivers + 2 * CALLERS,
        # One more try only, for a connection that the server closed while it was idle; the callers back off themselves.
        retries={"mode": "standard", "total_max_attempts": 2},
    )
    try:
        client = boto3.client("sqs", endpoint_url=queues.endpoint, region_name=queues.region, config=config)
    except (BotoCoreError, ValueError) as err:
        raise ConfigError(f"cannot set up the sqs client: {type(err).__name__}") from err
    return SqsCalls(client)


class SqsCalls:
    """The calls that this service makes. Safe to share between threads; all raise QueueUnavailable."""

    def __init__(self, client: SQSClient) -> None:
        self._client = client
        self._callers = ThreadPoolExecutor(CALLERS, thread_name_prefix="sqs")
        #: Calls so far by operation, answered or not.
        self.made: Counter[str] = Counter()

    def receive(self, url: str, *, count: int, visibility_s: int, wait_s: int) -> list[MessageTypeDef]:
        """Lease up to 10 messages of one queue, waiting up to `wait_s` for the first."""
        with self._mapped("ReceiveMessage"):
            answer = self._client.receive_message(
                QueueUrl=url,
                MaxNumberOfMessages=count,
                VisibilityTimeout=visibility_s,
                WaitTimeSeconds=wait_s,
                MessageSystemAttributeNames=["MessageGroupId", "SentTimestamp"],
                MessageAttributeNames=["All"],
            )
        return answer.get("Messages", [])

    def delete(self, handles: Sequence[tuple[str, str]]) -> None:
        """Remove messages, each given as (queue URL, handle); one whose handle is too old is left to come back."""
        self._batched("DeleteMessageBatch", [Entry(url, {"ReceiptHandle": handle}) for url, handle in handles]).ensure()

    def change_visibility(self, handles: Sequence[tuple[str, str]], *, visibility_s: int) -> Batched:
        """Extend leases, or end them at 0, each given as (queue URL, handle); raises nothing."""
        return self._batched(
            "ChangeMessageVisibilityBatch",
            [Entry(url, {"ReceiptHandle": handle, "VisibilityTimeout": visibility_s}) for url, handle in handles],
        )

    def send(self, url: str, body: str, *, group: str, attributes: Mapping[str, str] | None = None) -> str:
        """Append one message; returns SQS's name for it."""
        given: dict[str, Any] = {"MessageGroupId": group} if group else {}
        given["MessageAttributes"] = {
            name: {"DataType": "String", "StringValue": value} for name, value in (attributes or {}).items()
        }
        with self._mapped("SendMessage"):
            return self._client.send_message(QueueUrl=url, MessageBody=body, **given)["MessageId"]

    def attributes(self, url: str, *names: str) -> Mapping[str, str]:
        """Read attributes of a queue."""
        with self._mapped("GetQueueAttributes"):
            wanted: Any = list(names)
            answer = self._client.get_queue_attributes(QueueUrl=url, AttributeNames=wanted)
        return {str(name): value for name, value in answer.get("Attributes", {}).items()}

    def side_by_side(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Make independent calls at once; returns their answers in order."""
        if len(calls) == 1:
            return [calls[0]()]
        futures = [self._callers.submit(call) for call in calls]
        return [future.result() for future in futures]

    def close(self) -> None:
        """Close the connections."""
        self._callers.shutdown()
        self._client.close()

    def _batched(self, operation: str, entries: Sequence[Entry]) -> Batched:
        """Make the batch calls of one operation, side by side, and all of them even if one fails."""
        by_queue: dict[str, list[int]] = defaultdict(list)
        for position, entry in enumerate(entries):
            by_queue[entry.url].append(position)
        calls = [
            {positions[index]: entries[positions[index]] for index in part}
            for positions in by_queue.values()
            for part in chunks([entries[position].size_bytes for position in positions])
        ]
        outcome = Batched()
        for call, answer in zip(
            calls, self.side_by_side([partial(self._try, operation, call) for call in calls]), strict=True
        ):
            if isinstance(answer, QueueUnavailable):
                outcome.failed.update(call)
                outcome.error = answer
            else:
                outcome.refused.update(answer)
        return outcome

    def _try(self, operation: str, entries: dict[int, Entry]) -> set[int] | QueueUnavailable:
        try:
            return self._insist(operation, entries)
        except QueueUnavailable as err:
            return err

    def _insist(self, operation: str, entries: dict[int, Entry]) -> set[int]:
        """Make one batch call, again for the entries that SQS failed by its own fault."""
        backoff = Backoff(base_s=FIRST_RETRY_S, cap_s=LONGEST_RETRY_S)
        refused: set[int] = set()
        for tries_left in reversed(range(TRIES)):
            failed = self._call_batch(operation, entries)
            refused.update(position for position, is_senders in failed.items() if is_senders)
            entries = {position: entries[position] for position, is_senders in failed.items() if not is_senders}
            if not entries:
                break
            if not tries_left:
                raise QueueUnavailable(f"{operation} keeps failing for some of its entries")
            time.sleep(backoff.next_s())
        return refused

    def _call_batch(self, operation: str, entries: Mapping[int, Entry]) -> dict[int, bool]:
        """Make one call; returns, by position, whether a failed entry is the sender's fault."""
        given = [{"Id": str(position), **entry.members} for position, entry in entries.items()]
        url = next(iter(entries.values())).url
        try:
            with self._mapped(operation):
                answer = getattr(self._client, _METHODS[operation])(QueueUrl=url, Entries=given)
        except (QueueMissing, QueueDenied) as err:
            # This queue's matter, which must not look like an outage of all of them.
            _log.warning("queue refuses", name=url.rpartition("/")[2], action=operation, exc_info=err)
            return dict.fromkeys(entries, True)
        return {int(failure["Id"]): failure["SenderFault"] for failure in answer.get("Failed", [])}

    @contextmanager
    def _mapped(self, operation: str) -> Iterator[None]:
        """Count a call, and turn every error of boto3 into ours; its text names the account, so it is dropped."""
        self.made[operation] += 1
        try:
            yield
        except ClientError as err:
            code = err.response.get("Error", {}).get("Code", "")
            if code in _MISSING:
                raise QueueMissing(code) from err
            if code in _DENIED:
                raise QueueDenied(code) from err
            raise QueueUnavailable(code) from err
        except BotoCoreError as err:
            raise QueueUnavailable(type(err).__name__) from err
