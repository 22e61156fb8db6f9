"""Notices as messages of SNS topics: one per tenant, arn:aws:sns:eu-west-1:111122223333:mrgc-{tenant}, or one for all.

A message is JSON with the members of a notice; `tenant` and `status` are attributes too, for subscription filters. A
filter is no fence: who may subscribe to a topic may read all of it, so tenants that must not know of each other's jobs
need a topic each.

boto3's default chain finds the credentials. May import: the standard library, boto3, botocore, mrgc.errors, worker.
Called by worker.composition.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from mrgc.errors import ConfigError, QueueUnavailable
from worker.notices import Notice

#: Amazon SNS API Reference, "PublishBatch": entries of one call.
MAX_ENTRIES: Final = 10
#: Calls side by side: a settled batch of 512 jobs takes about seven round trips.
CALLERS: Final = 8
CONNECT_TIMEOUT_S: Final = 1.0
READ_TIMEOUT_S: Final = 2.0

_PLACE: Final = "{tenant}"
#: A topic's ARN with or without the place of the tenant's name; standard topics only, order is no matter.
TOPIC: Final = re.compile(
    r"arn:aws[a-z-]{0,20}:sns:(?P<region>[a-z0-9-]{5,30}):[0-9]{12}:[A-Za-z0-9_-]{0,193}(\{tenant\}[A-Za-z0-9_-]{0,60})?"
)


class SnsNotices:
    """The Notifier over SNS.

    Args:
        topic: ARN, which `TOPIC` matches.

    Raises:
        ConfigError: the ARN is malformed, or boto3 is set up wrongly.
    """

    def __init__(self, topic: str) -> None:
        match = TOPIC.fullmatch(topic)
        if match is None:
            raise ConfigError("MRGC_NOTICES is neither stream, nor off, nor the ARN of a standard SNS topic")
        self._topic = topic
        config = Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            max_pool_connections=CALLERS,
            retries={"mode": "standard", "total_max_attempts": 2},
        )
        try:
            self._client: Any = boto3.client("sns", region_name=match["region"], config=config)
        except (BotoCoreError, ValueError) as err:
            raise ConfigError(f"cannot set up the sns client: {type(err).__name__}") from err
        self._callers = ThreadPoolExecutor(CALLERS, thread_name_prefix="sns")

    def publish(self, notices: Sequence[Notice]) -> int:
        """Send all, ten a call, calls side by side; a tenant's missing topic loses that tenant's notices only."""
        by_topic: dict[str, list[Notice]] = defaultdict(list)
        for notice in notices:
            by_topic[self._topic.replace(_PLACE, notice.tenant)].append(notice)
        calls = [
            (topic, group[start : start + MAX_ENTRIES])
            for topic, group in by_topic.items()
            for start in range(0, len(group), MAX_ENTRIES)
        ]
        lost = list(self._callers.map(lambda call: self._publish_some(*call), calls))
        if None in lost and not any(count is not None for count in lost):
            raise QueueUnavailable("sns takes no notice")
        return sum(len(group) if count is None else count for (_, group), count in zip(calls, lost, strict=True))

    def close(self) -> None:
        """Close the connections."""
        self._callers.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _publish_some(self, topic: str, group: Sequence[Notice]) -> int | None:
        """Send at most ten; returns how many were not taken, None when the call itself failed."""
        entries = [
            {
                "Id": str(position),
                "Message": json.dumps(notice._asdict()),
                "MessageAttributes": {
                    name: {"DataType": "String", "StringValue": getattr(notice, name)} for name in ("tenant", "status")
                },
            }
            for position, notice in enumerate(group)
        ]
        try:
            answer = self._client.publish_batch(TopicArn=topic, PublishBatchRequestEntries=entries)
        except (BotoCoreError, ClientError):
            return None
        return len(answer.get("Failed", ()))
