"""One tenant's queue at the local SQS, filled by batch calls; counts what its consumers call.

May import: the standard library, boto3, bench, worker.sources.sqs_layout.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from worker.sources.sqs_layout import MAX_ENTRIES, encode_job

#: Calls of a sender at once, so that the queue is filled faster than anybody drains it.
SENDERS: Final = 16
#: What a consumer calls; sending is the tenant's, and looking at the queue is this benchmark's.
CONSUMING: Final = frozenset(
    {"ReceiveMessage", "DeleteMessage", "DeleteMessageBatch", "ChangeMessageVisibility", "ChangeMessageVisibilityBatch"}
)
_LEFT: Final = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")


class SqsQueue:
    """The queue of one tenant.

    Args:
        client: boto3's, of the local SQS.
        endpoint: of the local SQS, which tells what was called.
        url: of the queue.
    """

    def __init__(self, client: Any, endpoint: str, url: str) -> None:
        self._client = client
        self._endpoint = endpoint
        self._url = url
        self._prepared: dict[str, list[list[dict[str, str]]]] = {}
        self._called_before = 0

    def prepare(self, label: str, jobs: Sequence[bytes]) -> None:
        """Remember jobs as the entries of batch calls."""
        entries = [{"Id": str(number), "MessageBody": encode_job(job)} for number, job in enumerate(jobs)]
        self._prepared[label] = [entries[start : start + MAX_ENTRIES] for start in range(0, len(entries), MAX_ENTRIES)]

    def fill(self, label: str) -> None:
        """Send prepared jobs."""
        self._called_before = self._called()
        with ThreadPoolExecutor(SENDERS) as senders:
            for answer in senders.map(self._send, self._prepared[label]):
                assert not answer.get("Failed")

    def is_drained(self) -> bool:
        """Return whether nothing waits and nothing is leased."""
        found = self._client.get_queue_attributes(QueueUrl=self._url, AttributeNames=list(_LEFT))["Attributes"]
        return not any(int(found[name]) for name in _LEFT)

    def calls(self) -> int:
        """Return how many calls a consumer has made since the last `fill`."""
        return self._called() - self._called_before

    def _send(self, entries: list[dict[str, str]]) -> Any:
        return self._client.send_message_batch(QueueUrl=self._url, Entries=entries)

    def _called(self) -> int:
        # Always a loopback URL of this benchmark's own server.
        with urllib.request.urlopen(f"{self._endpoint}/calls", timeout=5.0) as answer:  # noqa: S310
            calls: dict[str, int] = json.load(answer)
        return sum(count for name, count in calls.items() if name in CONSUMING)
