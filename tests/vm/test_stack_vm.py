"""The whole service with its enclave in a virtual machine: agent, engine and worker do not know the difference."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from infra.eif import reader
from infra.eif.fetch import PackageCache
from infra.parts import enclave_serves
from tests.e2e.conftest import RunningStack
from tests.enclave.stack import REPOSITORY
from tests.waiting import until

SERVE_S: Final = 400.0

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def stack(packages: PackageCache, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Run `infra.local up --enclave vm` with the seeded two-layer model."""
    del packages  # fetched, so that the stack's own start has nothing to fetch
    directory = tmp_path_factory.mktemp("vmstack")
    command = [sys.executable, "-m", "infra.local", "up", "--dir", str(directory), "--enclave", "vm", "--threads", "1"]
    with (directory / "local.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--tenants", "acme,globex,initech"], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=log
        )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n", (directory / "local.log").read_text()
        yield RunningStack(directory)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    assert process.returncode == 0


def test_the_tenants_keys_demand_the_image_that_was_built(stack: RunningStack) -> None:
    """catalog.json, the key policy in force and the image file name one PCR0."""
    image = reader.read(stack.directory / "image" / "mrgc-enclave.eif")
    assert json.loads((stack.directory / "catalog.json").read_text())["pcr0"] == image.pcrs[0].hex()
    with stack.client("acme") as client:
        assert client.settings.tenant == "acme"
    stack.ensure_a_good_job_succeeds()


def test_jobs_outlive_the_machine(stack: RunningStack) -> None:
    """The machine is killed under load: another boots, every job gets exactly one result, and a new one succeeds."""
    with stack.client("globex") as client:
        jobs = client.submit([f"text number {index}" for index in range(64)], items_per_job=2)
        first = client.wait(jobs, timeout_s=SERVE_S)
        assert next(iter(first)).state == "ok"
        stack.kill("enclave")
        outcomes = {outcome.job.id: outcome.state for outcome in client.wait(jobs, timeout_s=SERVE_S)}
    assert outcomes == dict.fromkeys((job.id for job in jobs), "ok")
    found = Counter(Path(name).parent.name for name in stack.objects())
    assert {job.id: found[job.id] for job in jobs} == dict.fromkeys((job.id for job in jobs), 1)
    assert stack.dead_letters("globex") == []
    serves_again(stack)
    stack.ensure_a_good_job_succeeds("globex")


def test_nothing_of_a_killed_machine_stays(stack: RunningStack) -> None:
    """QEMU and the vsock daemon end with the process that started them, however that ended."""
    serves_again(stack)
    parent = stack.pid("enclave")
    running = [
        path
        for path in Path("/proc").glob("[0-9]*")
        if str(stack.directory / "vm").encode() in _read(path / "cmdline") and path.name != str(parent)
    ]
    assert {_parent_of(path) for path in running} == {parent}
    assert len(running) == 2


def serves_again(stack: RunningStack) -> None:
    """Wait until the enclave of a new machine has token and credentials, and the intake takes jobs."""
    until(lambda: enclave_serves(stack.layout.enclave), within_s=SERVE_S, what="the enclave to serve")
    until(stack.is_serving, within_s=SERVE_S, what="the intake to serve")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _parent_of(process: Path) -> int:
    return int(_read(process / "stat").rpartition(b")")[2].split()[1])
