"""The operations of the one-machine SQS: JSON members in, JSON members out.

Shapes, limits and error names: Amazon SQS API Reference. A member that an operation does not take here is refused
rather than ignored. Whoever reaches the port may do everything; there are no accounts and no policies.

May import: the standard library, infra.sqs_journal, infra.sqs_queues. Called by infra.local_sqs.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from infra.sqs_journal import Journal
from infra.sqs_queues import DEFAULT_VISIBILITY_S, Message, Queue, Redrive, size_bytes

ACCOUNT: Final = "000000000000"
#: SQS quotas: a message, or all messages of one batch, with their attributes.
MAX_MESSAGE_BYTES: Final = 1 << 20
MAX_BATCH: Final = 10
MAX_VISIBILITY_S: Final = 43_200
MAX_WAIT_S: Final = 20

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,80}")
_GROUP: Final = re.compile(r"[!-~]{1,128}")
_SETTABLE: Final = frozenset({"VisibilityTimeout", "RedrivePolicy", "MessageRetentionPeriod", "MaximumMessageSize"})

Members = dict[str, Any]


class SqsFault(Exception):
    """An answer other than success.

    Args:
        kind: shape name of the API's model.
        text: for a person.
        code: the name that botocore's exception carries, where it differs from the shape's.
    """

    def __init__(self, kind: str, text: str, *, code: str | None = None) -> None:
        super().__init__(kind, text)
        self.kind = kind
        self.text = text
        self.code = code or kind


def _missing_queue() -> SqsFault:
    return SqsFault(
        "QueueDoesNotExist",
        "The specified queue does not exist.",
        code="AWS.SimpleQueueService.NonExistentQueue",
    )


def _invalid(text: str) -> SqsFault:
    return SqsFault("InvalidParameterValue", text)


class SqsApi:
    """All queues of one server.

    Args:
        journal: what was in them, and where changes are noted.
        endpoint: of the server, which queue URLs begin with.
        region: in the queues' ARNs.
    """

    def __init__(self, journal: Journal, *, endpoint: str, region: str) -> None:
        self._journal = journal
        self._endpoint = endpoint
        self._region = region
        self._queues: dict[str, Queue] = {}
        self._attributes: dict[str, dict[str, str]] = {}
        #: Replaced whenever a message may have become visible, which wakes the long polls.
        self._changed: dict[str, asyncio.Event] = {}
        kept = list(journal.queues())
        # Twice: a queue may come before the dead-letter queue that its attributes name.
        for name, attributes in [*((name, {}) for name, _ in kept), *kept]:
            self._make(name, attributes)
        for name, message in journal.messages():
            self._queues[name].add(message)
        self._operations: dict[str, Callable[[Members], Members]] = {
            "CreateQueue": self._create_queue,
            "GetQueueUrl": lambda given: {"QueueUrl": self._url(self._queue_named(given["QueueName"]))},
            "ListQueues": self._list_queues,
            "DeleteQueue": self._delete_queue,
            "GetQueueAttributes": self._get_attributes,
            "SetQueueAttributes": self._set_attributes,
            "PurgeQueue": self._purge,
            "SendMessage": self._send,
            "SendMessageBatch": self._send_batch,
            "DeleteMessage": self._delete,
            "DeleteMessageBatch": lambda given: self._batch(given, self._delete_entry),
            "ChangeMessageVisibility": self._change_visibility,
            "ChangeMessageVisibilityBatch": lambda given: self._batch(given, self._visibility_entry),
        }

    def is_operation(self, name: str) -> bool:
        """Return whether an operation exists here."""
        return name == "ReceiveMessage" or name in self._operations

    async def call(self, name: str, given: Members, *, is_gone: Callable[[], bool]) -> Members:
        """Carry out one operation.

        Args:
            name: of the operation.
            given: its members.
            is_gone: whether the caller hung up; then a long poll takes nothing.

        Returns:
            The members of the answer.

        Raises:
            SqsFault: the operation is refused.
        """
        try:
            if name == "ReceiveMessage":
                return await self._receive(given, is_gone)
            return self._operations[name](given)
        except (KeyError, TypeError, ValueError, AttributeError) as err:
            raise SqsFault("MissingParameter", f"a member is missing or of the wrong type: {err}") from err

    # --- queues ---------------------------------------------------------------------------------------------------

    def _create_queue(self, given: Members) -> Members:
        name, attributes = given["QueueName"], given.get("Attributes", {})
        if not _NAME.fullmatch(name):
            raise _invalid("Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length")
        if name not in self._queues:
            self._make(name, attributes)
            self._journal.keep_queue(name, attributes)
        elif any(self._attributes[name].get(key) != value for key, value in attributes.items()):
            raise SqsFault("QueueNameExists", "A queue already exists with the same name and different attributes")
        return {"QueueUrl": self._url(self._queues[name])}

    def _make(self, name: str, attributes: dict[str, str]) -> None:
        if unknown := attributes.keys() - _SETTABLE:
            raise SqsFault("InvalidAttributeName", f"not supported here: {', '.join(sorted(unknown))}")
        redrive = None
        if policy := attributes.get("RedrivePolicy"):
            parsed = json.loads(policy)
            redrive = Redrive(parsed["deadLetterTargetArn"].rpartition(":")[2], int(parsed["maxReceiveCount"]))
            if redrive.queue not in self._queues:
                raise _invalid("the dead-letter queue of RedrivePolicy does not exist")
        visibility_s = _number(attributes, "VisibilityTimeout", DEFAULT_VISIBILITY_S, most=MAX_VISIBILITY_S)
        if name in self._queues:
            self._queues[name].visibility_s, self._queues[name].redrive = visibility_s, redrive
        else:
            self._queues[name] = Queue(name, visibility_s=visibility_s, redrive=redrive)
            self._changed[name] = asyncio.Event()
        self._attributes[name] = dict(attributes)

    def _list_queues(self, given: Members) -> Members:
        prefix = given.get("QueueNamePrefix", "")
        return {"QueueUrls": [self._url(queue) for name, queue in self._queues.items() if name.startswith(prefix)]}

    def _delete_queue(self, given: Members) -> Members:
        name = self._queue(given).name
        del self._queues[name], self._attributes[name]
        self._changed.pop(name).set()
        self._journal.forget_queue(name)
        return {}

    def _get_attributes(self, given: Members) -> Members:
        queue = self._queue(given)
        known = {
            "VisibilityTimeout": str(int(queue.visibility_s)),
            "MaximumMessageSize": str(MAX_MESSAGE_BYTES),
            **self._attributes[queue.name],
            "QueueArn": self._arn(queue),
            "ApproximateNumberOfMessages": str(queue.visible),
            "ApproximateNumberOfMessagesNotVisible": str(len(queue) - queue.visible),
            "ApproximateNumberOfMessagesDelayed": "0",
        }
        wanted = given.get("AttributeNames", [])
        return {"Attributes": {key: value for key, value in known.items() if key in wanted or "All" in wanted}}

    def _set_attributes(self, given: Members) -> Members:
        name = self._queue(given).name
        attributes = self._attributes[name] | given["Attributes"]
        self._make(name, attributes)
        self._journal.keep_queue(name, attributes)
        return {}

    def _purge(self, given: Members) -> Members:
        self._journal.forget(self._queue(given).clear())
        return {}

    # --- messages -------------------------------------------------------------------------------------------------

    def _send(self, given: Members) -> Members:
        queue = self._queue(given)
        answer = self._append(queue, given)
        self._wake(queue)
        return answer

    def _send_batch(self, given: Members) -> Members:
        queue = self._queue(given)
        sizes = [size_bytes(entry["MessageBody"], entry.get("MessageAttributes", {})) for entry in _entries(given)]
        if sum(sizes) > MAX_MESSAGE_BYTES:
            raise SqsFault(
                "BatchRequestTooLong",
                "Batch requests cannot be longer than 1048576 bytes.",
                code="AWS.SimpleQueueService.BatchRequestTooLong",
            )
        answer = self._batch(given, lambda _queue, entry: self._append(queue, entry))
        self._wake(queue)
        return answer

    def _append(self, queue: Queue, entry: Members) -> Members:
        body, attributes, group = entry["MessageBody"], entry.get("MessageAttributes", {}), entry.get("MessageGroupId")
        _ensure_only(entry, {"Id", "QueueUrl", "MessageBody", "MessageAttributes", "MessageGroupId"})
        if not isinstance(body, str) or not body:
            raise _invalid("The request must contain the parameter MessageBody.")
        if size_bytes(body, attributes) > MAX_MESSAGE_BYTES:
            raise _invalid("One or more parameters are invalid. Reason: Message must be shorter than 1048576 bytes.")
        if group is not None and not _GROUP.fullmatch(group):
            raise _invalid("MessageGroupId can only include alphanumeric and punctuation characters.")
        message = Message(secrets.token_hex(16), body, attributes, group or "", int(time.time() * 1_000))
        queue.add(message)
        self._journal.keep(queue.name, message)
        return {"MessageId": message.id, "MD5OfMessageBody": _md5(body)}

    async def _receive(self, given: Members, is_gone: Callable[[], bool]) -> Members:
        queue = self._queue(given)
        count = _number(given, "MaxNumberOfMessages", 1, least=1, most=MAX_BATCH)
        visibility_s = _number(given, "VisibilityTimeout", int(queue.visibility_s), most=MAX_VISIBILITY_S)
        deadline_s = time.monotonic() + _number(given, "WaitTimeSeconds", 0, most=MAX_WAIT_S)
        while True:
            now_s = time.monotonic()
            taken, spent = queue.receive(count, visibility_s=visibility_s, now_s=now_s)
            for message in spent:
                self._redrive(queue, message)
            if taken or now_s >= deadline_s:
                return {"Messages": [_shown(message, given) for message in taken]} if taken else {}
            lapse_s = queue.next_lapse_s()
            until_s = deadline_s if lapse_s is None else min(deadline_s, lapse_s)
            await _wait(self._changed[queue.name], until_s - now_s)
            if is_gone():
                return {}
            if queue.name not in self._queues:
                raise _missing_queue()

    def _redrive(self, queue: Queue, message: Message) -> None:
        message.receives, message.handle = 0, ""
        if queue.redrive is None or queue.redrive.queue not in self._queues:
            queue.add(message)
            return
        dead = self._queues[queue.redrive.queue]
        dead.add(message)
        self._journal.move(dead.name, message)
        self._wake(dead)

    def _delete(self, given: Members) -> Members:
        return self._delete_entry(self._queue(given), given)

    def _delete_entry(self, queue: Queue, entry: Members) -> Members:
        gone = queue.delete(_handle(entry))
        if gone is not None:
            self._journal.forget([gone])
        return {}

    def _change_visibility(self, given: Members) -> Members:
        return self._visibility_entry(self._queue(given), given)

    def _visibility_entry(self, queue: Queue, entry: Members) -> Members:
        visibility_s = _number(entry, "VisibilityTimeout", None, most=MAX_VISIBILITY_S)
        if not queue.change_visibility(_handle(entry), visibility_s=visibility_s, now_s=time.monotonic()):
            raise _invalid("Message does not exist or is not available for visibility timeout change.")
        self._wake(queue)
        return {}

    def _batch(self, given: Members, one: Callable[[Queue, Members], Members]) -> Members:
        queue = self._queue(given)
        successful, failed = [], []
        for entry in _entries(given):
            try:
                successful.append({"Id": entry["Id"]} | one(queue, entry))
            except SqsFault as fault:
                failed.append({"Id": entry["Id"], "SenderFault": True, "Code": fault.code, "Message": fault.text})
        return {"Successful": successful, "Failed": failed}

    def _queue(self, given: Members) -> Queue:
        return self._queue_named(given["QueueUrl"].rpartition("/")[2])

    def _queue_named(self, name: str) -> Queue:
        queue = self._queues.get(name)
        if queue is None:
            raise _missing_queue()
        return queue

    def _url(self, queue: Queue) -> str:
        return f"{self._endpoint}/{ACCOUNT}/{queue.name}"

    def _arn(self, queue: Queue) -> str:
        return f"arn:aws:sqs:{self._region}:{ACCOUNT}:{queue.name}"

    def _wake(self, queue: Queue) -> None:
        waited, self._changed[queue.name] = self._changed[queue.name], asyncio.Event()
        waited.set()


async def _wait(changed: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(max(0.0, timeout_s)):
            await changed.wait()
    except TimeoutError:
        pass


def _entries(given: Members) -> list[Members]:
    entries: list[Members] = given["Entries"]
    ids = [entry["Id"] for entry in entries]
    prefix = "AWS.SimpleQueueService"
    if not entries:
        raise SqsFault("EmptyBatchRequest", "There should be at least one entry.", code=f"{prefix}.EmptyBatchRequest")
    if len(entries) > MAX_BATCH:
        kind = "TooManyEntriesInBatchRequest"
        raise SqsFault(kind, "Maximum number of entries per request are 10.", code=f"{prefix}.{kind}")
    if len(set(ids)) != len(ids):
        raise SqsFault("BatchEntryIdsNotDistinct", "An Id is repeated.", code=f"{prefix}.BatchEntryIdsNotDistinct")
    return entries


def _handle(entry: Members) -> str:
    handle = entry["ReceiptHandle"]
    if not isinstance(handle, str) or "." not in handle:
        raise SqsFault("ReceiptHandleIsInvalid", "The input receipt handle is invalid.")
    return handle


def _shown(message: Message, given: Members) -> Members:
    wanted = {*given.get("MessageSystemAttributeNames", []), *given.get("AttributeNames", [])}
    system = {"SentTimestamp": str(message.sent_ms), "ApproximateReceiveCount": str(message.receives)}
    if message.group:
        system["MessageGroupId"] = message.group
    shown: Members = {
        "MessageId": message.id,
        "ReceiptHandle": message.handle,
        "MD5OfBody": _md5(message.body),
        "Body": message.body,
        "Attributes": {key: value for key, value in system.items() if key in wanted or "All" in wanted},
    }
    names = given.get("MessageAttributeNames", [])
    if found := {key: value for key, value in message.attributes.items() if key in names or "All" in names}:
        shown["MessageAttributes"] = found
    return shown


def _number(given: Members, key: str, default: int | None, *, least: int = 0, most: int) -> int:
    value = int(given[key] if default is None else given.get(key, default))
    if not least <= value <= most:
        raise _invalid(f"Value {value} for parameter {key} is invalid. Reason: Must be between {least} and {most}.")
    return value


def _ensure_only(given: Members, names: Iterable[str]) -> None:
    if unknown := given.keys() - set(names):
        raise SqsFault("UnsupportedOperation", f"not supported here: {', '.join(sorted(unknown))}")


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
