"""Bodies and attributes of SQS messages (docs/spec.md §5), and what a queue's own settings must be. Pure.

May import: the standard library, mrgc.errors, mrgc.wire, worker.sources. Called by worker.sources.sqs*.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from mrgc.errors import FormatError, TooLargeError
from mrgc.wire import strict_json
from worker.sources.base import BadMessage, ClaimCheck, Lease
from worker.sources.messages import MAX_MESSAGE_BYTES, MAX_REF_BYTES, claim_check

if TYPE_CHECKING:
    from mypy_boto3_sqs.type_defs import MessageTypeDef

#: Amazon SQS Developer Guide, "Message quotas": one message, or all of one batch, with their attributes.
MAX_CALL_BYTES: Final = 1 << 20
#: Amazon SQS API Reference: entries of a batch call, messages of a receive.
MAX_ENTRIES: Final = 10
#: A message longer than this is no job; its letter is cut here, so that the letter's attributes fit beside it.
MAX_LETTER_CHARS: Final = 768 << 10
#: Base64 of the longest job that a message may hold.
MAX_BODY_CHARS: Final = -(-MAX_MESSAGE_BYTES // 3) * 4
#: A claim check's object has two levels and three values.
MAX_REF_VALUES: Final = 16
#: Hand-backs count as receives too, so only a high bound stops a message that no host ever finishes.
LEAST_RECEIVES: Final = 1_000

#: Attributes of dead letters, and of a message that was handed back after an engine death.
REASON: Final = "reason"
ATTEMPTS: Final = "attempts"
SOURCE: Final = "source"
DEATHS: Final = "deaths"


def parse_body(body: str) -> bytes | ClaimCheck | BadMessage:
    """Read one message.

    Args:
        body: as received.

    Returns:
        The sealed job, a reference to it, or why the message is neither.
    """
    try:
        if body.startswith("{"):
            return _claim_check(body)
        return _job(body)
    except FormatError as err:
        return BadMessage(err.code, body)


def _job(body: str) -> bytes:
    if len(body) > MAX_BODY_CHARS:
        raise TooLargeError("message is over 524,288 bytes")
    try:
        job = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise FormatError("message is not base64") from None
    if len(job) > MAX_MESSAGE_BYTES:
        raise TooLargeError("message is over 524,288 bytes")
    # docs/spec.md §0: unused bits are zero, so there is one text for every job.
    if encode_job(job) != body:
        raise FormatError("message is not canonical base64")
    return job


def _claim_check(body: str) -> ClaimCheck:
    if len(body) > MAX_REF_BYTES:
        raise TooLargeError("claim check is over 4,096 bytes")
    parsed = strict_json.parse(body.encode("utf-8", "surrogatepass"), max_values=MAX_REF_VALUES)
    ref = parsed["ref"] if parsed.keys() == {"ref"} else None
    if type(ref) is not dict or ref.keys() != {"url", "sha256", "bytes"}:
        raise FormatError("claim check does not have exactly url, sha256 and bytes")
    text = ref["sha256"]
    try:
        sha256 = bytes.fromhex(text) if type(text) is str else b""
    except ValueError:
        sha256 = b""
    if sha256.hex() != text:
        raise FormatError("claim check sha256")
    return claim_check(ref["url"], sha256, ref["bytes"])


def encode_job(job: bytes) -> str:
    """Return the body of a message that holds a sealed job."""
    return base64.b64encode(job).decode()


def encode_body(body: bytes | ClaimCheck | BadMessage) -> str:
    """Return the message that `parse_body` read."""
    match body:
        case bytes(job):
            return encode_job(job)
        case ClaimCheck(url, sha256, length):
            return json.dumps({"ref": {"url": url, "sha256": sha256.hex(), "bytes": length}})
        case BadMessage(received=received):
            return received[:MAX_LETTER_CHARS]


def attribute(message: MessageTypeDef, name: str) -> str:
    """Return one of a message's own attributes as received; empty without it."""
    found: Any = message.get("MessageAttributes", {})
    return str(found.get(name, {}).get("StringValue", ""))


def group(message: MessageTypeDef) -> str:
    """Return a message's MessageGroupId; empty without one."""
    return message.get("Attributes", {}).get("MessageGroupId", "")


def sent_s(message: MessageTypeDef) -> float:
    """Return when a message was sent, unix seconds by SQS's clock."""
    return int(message.get("Attributes", {}).get("SentTimestamp", "0")) / 1_000


def letter_attributes(lease: Lease, *, reason: str) -> dict[str, str]:
    """Return the attributes of a dead letter: why, after how many engine deaths, and which message it was."""
    return {REASON: reason, ATTEMPTS: str(lease.deaths), SOURCE: lease.message_id}


def chunks(sizes_bytes: Sequence[int]) -> list[range]:
    """Divide entries into batch calls.

    Args:
        sizes_bytes: of each entry; none is over the limit of a call.

    Returns:
        Positions of each call's entries, at most 10 and 1 MiB of them.
    """
    calls: list[range] = []
    start = total = 0
    for position, size in enumerate(sizes_bytes):
        if position - start == MAX_ENTRIES or total + size > MAX_CALL_BYTES:
            calls.append(range(start, position))
            start, total = position, 0
        total += size
    return [*calls, range(start, len(sizes_bytes))] if sizes_bytes else []


def unsafe_settings(attributes: Mapping[str, str], *, dead_url: str) -> list[str]:
    """Judge a queue's own settings.

    Args:
        attributes: of GetQueueAttributes.
        dead_url: the queue where this deployment looks for dead letters.

    Returns:
        One sentence for every setting that could lose sight of a job; none when all is well.
    """
    policy = json.loads(attributes.get("RedrivePolicy") or "{}")
    if not policy:
        return ["queue has no RedrivePolicy: a message that no host ever finishes comes back until it expires"]
    found = []
    if int(policy.get("maxReceiveCount", 0)) < LEAST_RECEIVES:
        found.append("maxReceiveCount is under 1,000: hand-backs alone could dead-letter a job")
    if str(policy.get("deadLetterTargetArn", "")).rpartition(":")[2] != dead_url.rpartition("/")[2]:
        found.append("RedrivePolicy names another dead-letter queue than ours, which redrive and purge do not see")
    return found
