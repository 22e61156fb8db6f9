"""The one-machine SQS as a process that a test may kill, with tenants' and Celery's queues (docs/operations.md §8)."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import boto3

from infra import parts
from tests.tasks.conftest import REPOSITORY
from tests.waiting import until

ACCOUNT: Final = "000000000000"
#: What a worker needs beside the URLs; the stand-in looks at no signature.
AWS: Final = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "eu-west-1"}
#: Short, so that a refused message comes back while the test watches, and soon is a dead letter.
CONTROL_VISIBILITY_S: Final = 2
CONTROL_RECEIVES: Final = 2


class LocalSqs:
    """One server, durable in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._process = self._launch()
        self.client: Any = boto3.client(
            "sqs",
            endpoint_url=self.endpoint,
            region_name=AWS["AWS_DEFAULT_REGION"],
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        for tenant in ("acme", "globex"):
            self._make(f"mrgc-{tenant}", most_receives=1_000)
        for queue in ("control", "infer"):
            self._make(f"mrgc-celery_{queue}", most_receives=CONTROL_RECEIVES, visibility_s=CONTROL_VISIBILITY_S)

    @property
    def environ(self) -> dict[str, str]:
        """Settings of a worker that has both its tenants' and Celery's queues here."""
        base = f"{self.endpoint}/{ACCOUNT}"
        return AWS | {"MRGC_QUEUE_URL": f"{base}/mrgc-{{tenant}}", "MRGC_BROKER_URL": f"{base}/mrgc-celery_{{queue}}"}

    def url(self, name: str) -> str:
        """The URL of a queue."""
        return f"{self.endpoint}/{ACCOUNT}/{name}"

    def send(self, name: str, body: str) -> None:
        """Send one message."""
        self.client.send_message(QueueUrl=self.url(name), MessageBody=body)

    def count(self, name: str) -> int:
        """Messages of a queue, leased ones included."""
        wanted = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self.client.get_queue_attributes(QueueUrl=self.url(name), AttributeNames=wanted)["Attributes"]
        return sum(map(int, found.values()))

    def kill(self) -> None:
        """Kill the server."""
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Start it again, with all that it had confirmed."""
        self._process = self._launch()

    def stop(self) -> None:
        """End it."""
        self.client.close()
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(10)

    def _make(self, name: str, *, most_receives: int, visibility_s: int = 30) -> None:
        self.client.create_queue(QueueName=f"{name}_dead")
        dead = f"arn:aws:sqs:eu-west-1:{ACCOUNT}:{name}_dead"
        policy = json.dumps({"deadLetterTargetArn": dead, "maxReceiveCount": most_receives})
        attributes = {"RedrivePolicy": policy, "VisibilityTimeout": str(visibility_s)}
        self.client.create_queue(QueueName=name, Attributes=attributes)

    def _launch(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "infra.local_sqs", "--port", str(self.port), "--dir", str(self._directory)]
        process = subprocess.Popen(command, cwd=REPOSITORY)
        until(lambda: parts.listens(self.port), within_s=20, what="the local sqs listens")
        return process
