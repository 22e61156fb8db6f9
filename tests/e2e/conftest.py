"""One whole stack for the end-to-end tests: every process real, the model small."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from infra.local import read_env
from infra.local_enclave import REPOSITORY
from infra.provision import Stack
from mrgc.client import Client
from tests.waiting import until

#: One test gives initech's key a policy that names another PCR0.
TENANTS: Final = ("acme", "globex", "initech")
START_S: Final = 90.0
SERVE_S: Final = 60.0


@dataclass(frozen=True)
class RunningStack:
    """A running `infra.local up` and ways to look at it and to hurt it."""

    directory: Path

    @cached_property
    def layout(self) -> Stack:
        """Where its parts lie."""
        ports = json.loads((self.directory / "ports.json").read_text())
        return Stack(self.directory, self.directory / "models", TENANTS, ports, 1)

    @cached_property
    def redis(self) -> redis.Redis[bytes]:
        """The queue's database, as its operator sees it."""
        return redis.Redis.from_url(self.layout.redis_url("operator"), socket_timeout=10)

    def env(self, tenant: str) -> dict[str, str]:
        """The shell exports of one tenant."""
        return read_env(self.directory / f"env.{tenant}")

    def client(self, tenant: str) -> Client:
        """A tenant's client; the caller closes it."""
        return Client.from_env(self.env(tenant))

    def pid(self, part: str) -> int:
        """The process id of a part, as pids.json names it now."""
        return int(json.loads((self.directory / "pids.json").read_text())[part])

    def kill(self, part: str) -> None:
        """SIGKILL a part and wait until the supervisor has started another."""
        dead = self.pid(part)
        os.kill(dead, signal.SIGKILL)
        until(lambda: self.pid(part) != dead, within_s=SERVE_S, what=f"{part} started again")

    def is_serving(self) -> bool:
        """Whether the intake says that a job would be served."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.layout.ports['worker']}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def objects(self) -> dict[str, bytes]:
        """Every result object by its path below the store."""
        root = self.directory / "results"
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.mrgc")}

    def dead_letters(self, tenant: str) -> list[dict[str, Any]]:
        """The fields of a tenant's dead letters, oldest first; job and ref stay bytes."""
        entries: Any = self.redis.xrange(f"dead:{tenant}")
        return [
            {name.decode(): value if name in (b"job", b"ref") else value.decode() for name, value in fields.items()}
            for _, fields in entries
        ]

    def dead_letter_of(self, sealed: bytes, tenant: str) -> dict[str, Any]:
        """Wait for the dead letter that holds exactly this message."""
        found = until(
            lambda: [letter for letter in self.dead_letters(tenant) if letter.get("job") == sealed],
            within_s=SERVE_S,
            what="the dead letter",
        )
        return found[0]

    def ensure_a_good_job_succeeds(self, tenant: str = "acme") -> None:
        """Submit one ordinary job and demand its result."""
        with self.client(tenant) as client:
            (outcome,) = client.wait(client.submit(["is the service well?"]), timeout_s=SERVE_S)
        assert outcome.state == "ok", outcome


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A stack with the seeded two-layer model, shared by all tests; each leaves it serving."""
    directory = tmp_path_factory.mktemp("stack")
    command = [sys.executable, "-m", "infra.local", "up", "--dir", str(directory)]
    with (directory / "local.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--tenants", ",".join(TENANTS), "--threads", "1"],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line == b"ready\n", (directory / "local.log").read_text()
        yield RunningStack(directory)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=START_S)
    assert process.returncode == 0
