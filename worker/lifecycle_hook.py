"""Tells an Auto Scaling group that this instance may be terminated now, instead of when its hook's time is over.

boto3's default chain finds the credentials, which need autoscaling:CompleteLifecycleAction. May import: the standard
library, boto3, botocore, structlog. Called by worker.departure.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import boto3
import structlog
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

CONNECT_TIMEOUT_S: Final = 1.0
READ_TIMEOUT_S: Final = 2.0

_log = structlog.get_logger()


class LifecycleHook(NamedTuple):
    """One hook that waits for one instance."""

    group: str
    hook: str
    instance: str
    region: str

    def complete(self) -> bool:
        """Let the termination go on; never raises, because the hook's own time limit does the same, later.

        Returns:
            Whether the group took the answer.
        """
        config = Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": 2},
        )
        try:
            client = boto3.client("autoscaling", region_name=self.region, config=config)
            client.complete_lifecycle_action(
                AutoScalingGroupName=self.group,
                LifecycleHookName=self.hook,
                InstanceId=self.instance,
                LifecycleActionResult="CONTINUE",
            )
        except (BotoCoreError, ClientError, ValueError) as error:
            _log.warning("lifecycle hook left to its time limit", name=self.hook, exc_info=error)
            return False
        _log.info("lifecycle hook completed", name=self.hook)
        return True
