"""The whole service on this machine, standing idle between the runs: `infra.local`'s own parts, nothing replaced.

Redis, the local KMS, the enclave as a process, its agent, the engine with all-MiniLM-L6-v2, the Celery worker with the
intake, a directory store. May import: everything.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from infra import parts, provision
from infra.local import read_env
from infra.local_enclave import REPOSITORY
from infra.local_nsm import create_pki
from infra.provision import Stack
from infra.supervisor import Part, Supervisor
from mrgc.client import Client
from worker.sources.redis_streams import connect

START_S: Final = 120.0
TENANT: Final = "acme"
#: Processes whose processor time a run reports.
MEASURED: Final = ("redis", "enclave", "engine", "worker")


@dataclass(frozen=True, slots=True)
class Stage:
    """What the runs need."""

    stack: Stack
    #: The tenant: seals jobs and opens results.
    client: Client
    #: Operator's client of the queue database.
    redis: Any
    #: Process ids by name, MEASURED only.
    pids: Mapping[str, int]

    @property
    def results(self) -> Path:
        """The directory store."""
        return self.stack.directory / "results"

    def cpu_s(self) -> dict[str, float]:
        """Return processor seconds by process, of all its threads (utime and stime of proc(5), /proc/PID/stat)."""
        tick = os.sysconf("SC_CLK_TCK")
        stats = {name: Path(f"/proc/{pid}/stat").read_text() for name, pid in self.pids.items()}
        return {name: sum(map(int, text.rpartition(")")[2].split()[11:13])) / tick for name, text in stats.items()}

    def resident_bytes(self) -> dict[str, int]:
        """Return what each process has in memory (VmRSS of proc(5), /proc/PID/status)."""
        status = {name: Path(f"/proc/{pid}/status").read_text() for name, pid in self.pids.items()}
        return {name: int(text.partition("VmRSS:")[2].split()[0]) << 10 for name, text in status.items()}

    def logs(self) -> str:
        """Return the ends of the logs of engine and worker."""
        folder = self.stack.directory / "logs"
        return "\n".join((folder / f"{name}.log").read_text()[-2_000:] for name in ("engine", "worker"))


@contextmanager
def standing(directory: Path, models: Path, *, dtype: str, threads: int) -> Iterator[Stage]:
    """Start all of it in an empty directory, and stop it at the end.

    Args:
        directory: for everything that the stack writes.
        models: folder of model folders.
        dtype: MRGC_DTYPE of the engine.
        threads: MRGC_THREADS of the engine.

    Raises:
        ConfigError: a part does not come up.
    """
    stack = Stack(directory, models.resolve(), (TENANT,), _free_ports(), threads=threads)
    for name in ("run", "results", "state"):
        (directory / name).mkdir()
    create_pki(directory / "nsm")
    supervisor = Supervisor(directory, cwd=REPOSITORY)
    try:
        _start(supervisor, parts.redis(stack, fsync="everysec"), parts.kms(stack))
        provision.tenants(stack)
        engine = parts.engine(stack)
        engine = replace(engine, env={**engine.env, "MRGC_DTYPE": dtype})
        _start(supervisor, parts.enclave(stack), parts.agent(stack), engine)
        _start(supervisor, parts.worker(stack))
        pids = json.loads((directory / "pids.json").read_text())
        with Client.from_env(read_env(directory / f"env.{TENANT}")) as client:
            yield Stage(stack, client, connect(stack.redis_url("operator")), {name: pids[name] for name in MEASURED})
    finally:
        supervisor.stop()


def _start(supervisor: Supervisor, *starting: Part) -> None:
    for part in starting:
        supervisor.start(part)
    supervisor.wait_ready(*(part.name for part in starting), deadline_s=START_S, stopping=threading.Event())


def _free_ports() -> dict[str, int]:
    probes = {name: socket.create_server(("127.0.0.1", 0)) for name in ("redis", "kms", "agent", "worker")}
    ports = {name: probe.getsockname()[1] for name, probe in probes.items()}
    for probe in probes.values():
        probe.close()
    return ports
