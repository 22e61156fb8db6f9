"""The one-machine stack itself: what it writes, that it stops what it started, and that a restart finds its state."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.local import read_env
from infra.local_enclave import REPOSITORY, pcrs
from infra.supervisor import MAX_DELAY_S, SETTLED_S, Backoff
from mrgc.client import Client
from tests.e2e.conftest import SERVE_S, START_S

PARTS = {"redis", "kms", "enclave", "agent", "engine", "worker", "beat"}


@contextmanager
def up(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a stack until it is ready; SIGINT ends it, as a person's Ctrl-C does."""
    command = [sys.executable, "-m", "infra.local", "up", "--dir", str(directory), "--tenants", "acme"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=START_S)


@pytest.mark.timeout(180)
def test_a_restart_in_the_same_directory_serves_what_the_last_run_left(tmp_path: Path) -> None:
    """Keys, records and queued jobs outlive the stack; a second one beside it is refused; all parts end with it."""
    with up(tmp_path):
        first = read_env(tmp_path / "env")
        pids = json.loads((tmp_path / "pids.json").read_text())
        second = subprocess.run(
            [sys.executable, "-m", "infra.local", "up", "--dir", str(tmp_path)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )
        with Client.from_env(first) as client:
            (served,) = client.wait(client.submit(["before the restart"]), timeout_s=SERVE_S)
    assert served.state == "ok"
    assert (second.returncode, "another stack runs" in second.stderr) == (2, True)
    assert pids.keys() == PARTS
    assert not [pid for pid in pids.values() if Path(f"/proc/{pid}").exists()]
    catalog = json.loads((tmp_path / "catalog.json").read_text())
    assert catalog["pcr0"] == pcrs()[0].hex()
    assert [model.keys() for model in catalog["models"]] == [{"name", "digest", "dimensions", "max_tokens"}]
    with up(tmp_path):
        assert read_env(tmp_path / "env") == first
        with Client.from_env(first) as client:
            assert client.open(client.fetch(served.job)).body == (served.result.body if served.result else b"")
            (again,) = client.wait(client.submit(["after the restart"]), timeout_s=SERVE_S)
    assert again.state == "ok"


@pytest.mark.parametrize("arguments", [["--models", "/nonexistent"], ["--tenants", "No Such"]])
def test_a_wrong_option_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str]) -> None:
    """A mistake is named on standard error, without a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "infra.local", "up", "--dir", str(tmp_path), *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("infra.local: ")


def test_a_part_that_keeps_dying_starts_ever_later_and_one_that_settled_starts_at_once() -> None:
    """The pause doubles from a tenth of a second to its cap, and long life forgives."""
    backoff = Backoff()
    delays = [backoff.delay_s(uptime_s=0.5) for _ in range(10)]
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert max(delays) == delays[-1] == MAX_DELAY_S
    assert backoff.delay_s(uptime_s=SETTLED_S) == 0.1
