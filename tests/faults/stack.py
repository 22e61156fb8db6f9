"""A whole stack that can be hurt: two workers, one engine, every process real, a proxy before broker and store."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

from infra import parts, queue_access
from infra.local import read_env
from infra.local_enclave import REPOSITORY
from infra.sqs_api import ACCOUNT
from mrgc.client import Client
from mrgc.wire import frames
from mrgc.wire.addresses import connect, parse_address
from tests.faults.brokers import Broker, RedisBroker, SqsBroker
from tests.faults.launcher import Alterations
from tests.faults.results import BucketResults, DirectoryResults, Results
from tests.faults.s3_server import BUCKET, S3Server
from tests.faults.tally import Tally
from tests.faults.tcp_proxy import TcpProxy
from tests.faults.workload import TENANTS
from tests.waiting import until
from worker import engine_protocol

Source = Literal["redis", "sqs"]
WORKERS: Final = ("worker", "worker-2")
#: Short, so that what a dead worker held comes back while the test watches.
LEASE_S: Final = 4.0
BATCH_JOBS: Final = 16
#: Account and name of a tenant's queue at the local SQS.
SQS_PATH: Final = f"{ACCOUNT}/mrgc-{{tenant}}"
START_S: Final = 120.0
RESTART_S: Final = 60.0
#: How long work may stand still after a fault: pauses and backoffs of an outage, and a start on a busy machine.
SERVE_S: Final = 90.0


@dataclass(frozen=True, slots=True)
class Shape:
    """How a stack differs from the usual one."""

    source: Source = "redis"
    #: Results go to a bucket, or to a directory.
    store: Literal["bucket", "directory"] = "bucket"
    #: Variables by part.
    env: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    #: Words before the stack's own command, for a namespace of its own.
    prefix: tuple[str, ...] = ()


class FaultStack:
    """A running stack.

    Args:
        directory: of the stack; made anew by the caller.
        shape: how it differs.
        tally: where kills and jobs are counted.
    """

    def __init__(self, directory: Path, shape: Shape, tally: Tally) -> None:
        self.directory = directory
        self.source = shape.source
        self.tally = tally
        self._shape = shape
        self._hold = directory / "hold"
        self._hold.mkdir(parents=True)
        self.broker_proxy = TcpProxy(lambda: self._ports[self.source])
        self.s3 = S3Server()
        self.store_proxy = TcpProxy(lambda: self.s3.port)
        self._second_port = _free_port()
        self._process = self._launch()
        in_directory = shape.store == "directory"
        self.results: Results = (
            DirectoryResults(lambda: self.inside("results")) if in_directory else BucketResults(self.s3)
        )

    # --- life ------------------------------------------------------------------------------------------------

    def wait_started(self) -> None:
        """Wait until the stack has come up for the first time."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line == b"ready\n", (self.directory / "launcher.log").read_text()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until both workers would serve a job."""
        until(lambda: all(map(self.is_ready, WORKERS)), within_s=START_S, what=f"{self.directory} serves")

    def is_ready(self, worker: str) -> bool:
        """Whether a worker says that it would serve a job."""
        return self.reasons(worker) == []

    def reasons(self, worker: str) -> list[str]:
        """Why a worker says that it does not serve; `unreachable` when it says nothing."""
        url = f"http://127.0.0.1:{self._worker_port(worker)}/readyz"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                page = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                page = error.read()
        except OSError:
            return ["unreachable"]
        return list(json.loads(page)["reasons"])

    def held(self, worker: str) -> int:
        """Leases that a worker holds."""
        return int(self._metrics(worker)["mrgc_held_jobs"])

    def retries(self, code: str) -> float:
        """Outcomes with this code that asked for another try, at both workers."""
        name = f'mrgc_retries_total{{code="{code}"}}'
        return sum(self._metrics(worker).get(name, 0.0) for worker in WORKERS)

    def engine_counters(self) -> Mapping[str, float]:
        """What the engine has done since its start, from itself."""
        with connect(parse_address(f"unix:{self.directory}/run/engine.sock"), timeout_s=10) as sock:
            engine_protocol.parse_ready(frames.recv(sock))
            frames.send(sock, engine_protocol.health_request(1))
            return engine_protocol.parse_health(frames.recv(sock)).counters

    def wait_progress(self, results: int) -> None:
        """Wait until so many results have been stored."""
        until(lambda: len(self.results.names()) >= results, within_s=SERVE_S, what="work goes on")

    def stop(self) -> int:
        """End the stack in order; returns the exit code."""
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=START_S)
        self.close()
        return self._process.returncode

    def close(self) -> None:
        """End what this process holds."""
        self.results.close()
        for server in (self.broker_proxy, self.store_proxy, self.s3):
            server.close()

    # --- looks -----------------------------------------------------------------------------------------------

    @cached_property
    def broker(self) -> Broker:
        """The broker, past the proxy."""
        if self.source == "redis":
            login = queue_access.login(self.inside("."), "operator")
            return RedisBroker(f"redis://{login}127.0.0.1:{self._ports['redis']}/0")
        endpoint = f"http://127.0.0.1:{self._ports['sqs']}"
        return SqsBroker(endpoint, f"{endpoint}/{SQS_PATH}")

    @property
    def parts(self) -> tuple[str, ...]:
        """Every process that the supervisor keeps alive."""
        return tuple(json.loads((self.directory / "pids.json").read_text()))

    def inside(self, folder: str) -> Path:
        """A folder of the stack as its own processes see it: they may have a mount namespace of their own."""
        return Path(f"/proc/{self._process.pid}/root{self.directory}/{folder}")

    @property
    def models(self) -> Path:
        """Folder of the stack's models."""
        return self.directory / "models"

    def env(self, tenant: str) -> dict[str, str]:
        """The shell exports of one tenant."""
        return read_env(self.directory / f"env.{tenant}")

    def client(self, tenant: str) -> Client:
        """A tenant's client with a data key of its own; the caller closes it."""
        return Client.from_env(self.env(tenant))

    def pid(self, part: str) -> int:
        """The process id of a part, as pids.json names it now."""
        return int(json.loads((self.directory / "pids.json").read_text())[part])

    def log(self, part: str) -> str:
        """All that a part has logged."""
        return (self.directory / "logs" / f"{part}.log").read_text()

    # --- faults ----------------------------------------------------------------------------------------------

    def kill(self, part: str) -> int:
        """SIGKILL a part, which the supervisor starts again; returns the dead process's id."""
        pid = self.pid(part)
        os.kill(pid, signal.SIGKILL)
        self.tally.kill(self.source, part)
        return pid

    def kill_if_alive(self, part: str) -> bool:
        """SIGKILL a part unless it is dead already, waiting for its next start."""
        try:
            self.kill(part)
        except ProcessLookupError:
            return False
        return True

    def wait_restarted(self, part: str, dead: int) -> None:
        """Wait until a part that died runs again, and listens if it is the broker."""
        until(lambda: self.pid(part) != dead, within_s=RESTART_S, what=f"{part} started again")
        if part == self.broker.part:
            until(lambda: parts.listens(self._ports[part]), within_s=RESTART_S, what=f"{part} listens")

    @contextlib.contextmanager
    def stopped(self, part: str) -> Iterator[None]:
        """SIGSTOP a part inside the block, as a paused machine or a stuck disk does."""
        pid = self.pid(part)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    @contextlib.contextmanager
    def down(self, part: str) -> Iterator[None]:
        """Kill a part and keep it down inside the block."""
        gate = self._hold / part
        gate.touch()
        self.kill(part)
        try:
            yield
        finally:
            gate.unlink()

    def crash(self) -> None:
        """Kill every process, the supervisor too, as a machine does that loses its power."""
        # Stopped first, so that it starts nothing again in between.
        self._process.send_signal(signal.SIGSTOP)
        for part in self.parts:
            self.kill(part)
        self._process.kill()
        self._process.communicate()

    def restart(self) -> None:
        """Start again on the same data after a crash, and wait until both workers serve."""
        self._process = self._launch()
        self.wait_started()

    # --- parts of the above ----------------------------------------------------------------------------------

    @cached_property
    def _ports(self) -> dict[str, int]:
        ports: dict[str, int] = json.loads((self.directory / "ports.json").read_text())
        return ports

    def _worker_port(self, worker: str) -> int:
        return self._ports["worker"] if worker == WORKERS[0] else self._second_port

    def _metrics(self, worker: str) -> dict[str, float]:
        url = f"http://127.0.0.1:{self._worker_port(worker)}/metrics"
        with urllib.request.urlopen(url, timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def _launch(self) -> subprocess.Popen[bytes]:
        file = self.directory / "alterations.json"
        self._alterations().write(file)
        command = [sys.executable, "-m", "tests.faults.launcher", str(file), "up", "--dir", str(self.directory)]
        options = ["--tenants", ",".join(TENANTS), "--threads", "1", "--queue", self.source]
        with (self.directory / "launcher.log").open("ab") as log:
            return subprocess.Popen(
                [*self._shape.prefix, *command, *options],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def _alterations(self) -> Alterations:
        through = f"127.0.0.1:{self.broker_proxy.port}"
        urls = {
            "redis": {
                "MRGC_QUEUE_URL": f"redis://{queue_access.login(self.directory, 'worker')}{through}/0",
                "MRGC_BROKER_URL": f"redis://{queue_access.login(self.directory, 'control')}{through}/1",
            },
            "sqs": {
                "MRGC_QUEUE_URL": f"http://{through}/{SQS_PATH}",
                "MRGC_BROKER_URL": f"http://{through}/{ACCOUNT}/mrgc-celery_{{queue}}",
            },
        }
        worker = {
            **urls[self.source],
            "MRGC_LEASE_S": str(LEASE_S),
            "MRGC_MAX_BATCH_JOBS": str(BATCH_JOBS),
            "MRGC_MAX_INFLIGHT_JOBS": "128",
        }
        if self._shape.store == "bucket":
            worker |= {
                "MRGC_RESULTS_URL": f"s3://{BUCKET}/",
                "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self.store_proxy.port}",
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_REGION": "eu-west-1",
            }
        engine = [sys.executable, "-m", "tests.faults.fragile_engine"]
        env = {part: dict(variables) for part, variables in self._shape.env.items()}
        return Alterations(
            hold=str(self._hold),
            env=env | {"worker": worker | env.get("worker", {})},
            commands={"engine": engine},
            # Another host's: what the first hears of its instance is none of its business.
            copies={"worker": {"worker-2": {"MRGC_WORKER_HTTP": f"127.0.0.1:{self._second_port}", "MRGC_IMDS": ""}}},
        )


def lasting(seconds: float) -> None:
    """Let a fault last: its length is its definition, not a guess at when something is done."""
    threading.Event().wait(seconds)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
