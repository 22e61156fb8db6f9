"""Real Celery worker processes on a real Redis, with the intake tests' engine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra import redis_server
from infra.redis_server import RedisServer
from tests.access.users import add_users, login
from tests.intake.peer_engine import PeerEngine
from tests.intake.sealing import REGISTRY
from tests.waiting import until
from worker.sources.redis_streams import Client, connect

REPOSITORY = Path(__file__).parents[2]
COMMAND = [
    *(sys.executable, "-m", "celery", "-A", "tasks", "worker"),
    *("--without-gossip", "--without-mingle", "--without-heartbeat"),
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own, which it may kill, with the users that the product's processes have."""
    server = redis_server.start(tmp_path / "redis", fsync="everysec")
    add_users(server)
    yield server
    server.stop()


@pytest.fixture
def client(server: RedisServer) -> Iterator[Client]:
    """The tenant's side, and the test's own view."""
    with connect(server.url()) as client:
        yield client


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[PeerEngine]:
    """An engine of the test's own."""
    engine = PeerEngine(tmp_path / "engine.sock")
    yield engine
    engine.close()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Directory of the result objects."""
    directory = tmp_path / "results"
    directory.mkdir()
    return directory


@pytest.fixture
def environ(server: RedisServer, engine: PeerEngine, results: Path, tmp_path: Path) -> dict[str, str]:
    """The whole environment of a GPU host's worker."""
    registry = tmp_path / "tenants.toml"
    registry.write_text(REGISTRY)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "MRGC_QUEUE_URL": server.url(login=login("worker")),
        "MRGC_BROKER_URL": server.broker_url(login=login("control")),
        "MRGC_RESULTS_URL": f"file://{results}/",
        "MRGC_REGISTRY": str(registry),
        "MRGC_ENGINES": engine.address,
        "MRGC_WORKER_HTTP": f"127.0.0.1:{port}",
        "MRGC_LEASE_S": "1",
    }


@dataclass(slots=True)
class WorkerProcess:
    """One worker process."""

    process: subprocess.Popen[bytes]
    url: str
    log_file: Path

    def page(self, path: str) -> tuple[int, str]:
        """Status and body of one of its pages; status 0 while it does not answer."""
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=5) as answer:  # noqa: S310  loopback
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as err:
            with err:
                return err.code, err.read().decode()
        except OSError:
            return 0, ""

    def wait_ready(self) -> None:
        """Wait until it would serve a job."""
        until(lambda: self.page("/readyz")[0] == 200, within_s=30, what=f"ready; see {self.log_file}")

    def end(self, signum: int = signal.SIGTERM, *, within_s: float = 30.0) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(signum)
        return self.process.wait(within_s)

    @property
    def log(self) -> str:
        """All that it has logged."""
        return self.log_file.read_text()


StartWorker = Callable[..., WorkerProcess]


@pytest.fixture
def start_worker(environ: dict[str, str], tmp_path: Path) -> Iterator[StartWorker]:
    """Starts worker processes and kills those that the test leaves."""
    workers: list[WorkerProcess] = []

    def start(*arguments: str, ready: bool = True, **changes: str) -> WorkerProcess:
        log_file = tmp_path / f"worker-{len(workers)}.log"
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [*COMMAND, *arguments], cwd=REPOSITORY, env=environ | changes, stdout=log, stderr=log
            )
        worker = WorkerProcess(process, f"http://{(environ | changes)['MRGC_WORKER_HTTP']}", log_file)
        workers.append(worker)
        if ready:
            worker.wait_ready()
        return worker

    yield start
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.kill()
        worker.process.wait()
