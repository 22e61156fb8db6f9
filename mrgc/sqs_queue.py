"""A tenant's queue at SQS: SendMessageBatch (docs/spec.md §5).

Called by `mrgc.client_parts`. May import: boto3, botocore, the standard library, mrgc.errors, mrgc.wire,
mrgc.client_settings, mrgc.job_queue, mrgc.tenant_kms.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from mrgc.client_settings import AwsAccess
from mrgc.errors import ConfigError, QueueUnavailable
from mrgc.job_queue import ClaimCheck
from mrgc.tenant_kms import session
from mrgc.wire.queue_urls import parse_sqs

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

#: Amazon SQS API Reference, "SendMessageBatch": entries and bytes of one call, attributes included.
MAX_ENTRIES: Final = 10
MAX_CALL_BYTES: Final = 1 << 20
#: Calls at once.
CALLS: Final = 4
#: Tries of the entries that SQS failed by its own fault.
TRIES: Final = 5
_BACKOFF_BASE_S: Final = 0.1
_CONFIG: Final = Config(
    connect_timeout=5,
    read_timeout=15,
    max_pool_connections=CALLS,
    retries={"mode": "standard", "total_max_attempts": TRIES},
)


class SqsQueue:
    """One tenant's queue, or the one that it shares with others; the tenant is the message group in both.

    Args:
        url: https://sqs.REGION.amazonaws.com/ACCOUNT/NAME, in which `{tenant}` stands for the tenant.
        tenant: its name.
        aws: credentials.

    Raises:
        ConfigError: the URL is malformed, names no region and boto3 knows none, or there are no credentials.
    """

    def __init__(self, url: str, *, tenant: str, aws: AwsAccess) -> None:
        queues = parse_sqs(url)
        self._url = queues.queue(tenant)
        self._tenant = tenant
        try:
            # The queue's host decides the region and the endpoint, whatever AWS_REGION says.
            self._sqs: SQSClient = session(aws, region=queues.region or aws.region).client(
                "sqs", endpoint_url=queues.endpoint, verify=aws.ca_bundle, config=_CONFIG
            )
        except (BotoCoreError, ValueError) as error:
            raise ConfigError(f"cannot set up the sqs client: {type(error).__name__}") from error
        self._callers = ThreadPoolExecutor(CALLS, thread_name_prefix="mrgc-send")

    def send(self, messages: Sequence[bytes | ClaimCheck]) -> None:
        """Append messages, ten or 1 MiB a call; SQS promises no order."""
        entries = [
            {"Id": str(position), "MessageBody": _body(message), "MessageGroupId": self._tenant}
            for position, message in enumerate(messages)
        ]
        list(self._callers.map(self._send_batch, _calls(entries)))

    def close(self) -> None:
        """Close the connections."""
        self._callers.shutdown()
        self._sqs.close()

    def _send_batch(self, entries: list[dict[str, str]]) -> None:
        for failures in range(TRIES):
            failed = self._call(entries)
            if not failed:
                return
            entries = [entry for entry in entries if entry["Id"] in failed]
            time.sleep(_BACKOFF_BASE_S * 2**failures * secrets.SystemRandom().uniform(0.5, 1))
        raise QueueUnavailable(f"queue {self._url} does not take some of the jobs")

    def _call(self, entries: list[dict[str, str]]) -> set[str]:
        """Make one call; returns the ids of entries that are worth another try."""
        given: Any = entries
        try:
            answer = self._sqs.send_message_batch(QueueUrl=self._url, Entries=given)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            raise QueueUnavailable(f"queue {self._url} did not take the jobs: {code}") from error
        except BotoCoreError as error:
            raise QueueUnavailable(f"queue {self._url} did not take the jobs: {type(error).__name__}") from error
        failures = answer.get("Failed", [])
        for failure in failures:
            if failure["SenderFault"]:
                raise QueueUnavailable(f"queue {self._url} refused a job: {failure['Code']}")
        return {failure["Id"] for failure in failures}


def _body(message: bytes | ClaimCheck) -> str:
    if isinstance(message, bytes):
        return base64.b64encode(message).decode()
    ref = {"url": message.url, "sha256": message.sha256.hex(), "bytes": message.size_bytes}
    return json.dumps({"ref": ref}, separators=(",", ":"))


def _calls(entries: Sequence[dict[str, str]]) -> Iterator[list[dict[str, str]]]:
    call: list[dict[str, str]] = []
    call_bytes = 0
    for entry in entries:
        entry_bytes = len(entry["MessageBody"])
        if call and (len(call) == MAX_ENTRIES or call_bytes + entry_bytes > MAX_CALL_BYTES):
            yield call
            call, call_bytes = [], 0
        call.append(entry)
        call_bytes += entry_bytes
    if call:
        yield call
