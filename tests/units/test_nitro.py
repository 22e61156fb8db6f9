"""`python -m infra.nitro`: only the published image runs, never in debug mode, and what ends is noticed."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave.kms_calls import KMS_THREADS
from infra import nitro
from infra.eif import measurement, reader, writer
from infra.nitro import BOOT_S, SILENT_S, Deployment, Watch
from mrgc.errors import ConfigError
from tests.eif.conftest import CONTENTS
from tests.waiting import until

SCRIPT: Final = Path(__file__).with_name("nitro_cli.py")


class Parent:
    """A parent with a nitro-cli, an image and its published PCRs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.deployment = Deployment(folder / "image.eif", folder / "pcrs.json", folder / "env")
        writer.write(self.deployment.image, CONTENTS)
        self.publish(reader.read(self.deployment.image).pcrs)
        self.differs()

    def publish(self, pcrs: dict[int, bytes]) -> None:
        """Write pcr-values.json."""
        self.deployment.pcrs.write_text(json.dumps({"Measurements": measurement.to_json(pcrs)}))

    def differs(self, **members: Any) -> None:
        """Have describe-enclaves say something else of the next enclave."""
        (self.folder / "differs.json").write_text(json.dumps(members))

    @property
    def enclaves(self) -> list[dict[str, Any]]:
        """What runs."""
        file = self.folder / "enclaves.json"
        found: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
        return found

    @property
    def calls(self) -> list[str]:
        """What nitro-cli was asked."""
        file = self.folder / "calls"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parent:
    """Put a nitro-cli on the path, and let time between looks pass quickly."""
    program = tmp_path / "bin" / "nitro-cli"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {SCRIPT} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("STATE", str(tmp_path))
    monkeypatch.setattr(nitro, "POLL_S", 0.01)
    return Parent(tmp_path)


class Keeping:
    """`keep` in a thread."""

    def __init__(self, deployment: Deployment, is_healthy: Callable[[int], bool]) -> None:
        self.stopping = threading.Event()
        self.notified: list[str] = []
        self.code: int | None = None
        self._deployment = deployment
        self._is_healthy = is_healthy
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        notify = self.notified.append
        self.code = nitro.keep(self._deployment, self.stopping, is_healthy=self._is_healthy, notify=notify)

    def end(self) -> int | None:
        """Wait for its end."""
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.code


def test_the_published_image_runs_until_it_is_stopped(parent: Parent) -> None:
    """It starts with what the image asks for and a fixed CID, says where it is, is ready once it answers, and ends."""
    keeping = Keeping(parent.deployment, lambda cid: cid == nitro.CID)
    until(lambda: keeping.notified, within_s=20, what="READY")
    assert keeping.notified == ["READY=1"]
    assert parent.deployment.env_file.read_text() == "MRGC_ENCLAVE=vsock:16:5000\n"
    (enclave,) = parent.enclaves
    assert (enclave["MemoryMiB"], enclave["NumberOfCPUs"], enclave["EnclaveCID"]) == (256, 2, 16)
    assert not [call for call in parent.calls if "debug" in call]
    keeping.stopping.set()
    assert keeping.end() == 0
    assert parent.enclaves == []


def test_what_a_killed_supervisor_left_is_ended_first(parent: Parent) -> None:
    """An enclave of ours that still runs was locked with a token that is lost: it makes room for a new boot."""
    left = {"EnclaveName": "mrgc", "EnclaveID": "old", "EnclaveCID": 16, "State": "RUNNING", "Flags": "NONE"}
    others = left | {"EnclaveName": "another", "EnclaveID": "theirs"}
    (parent.folder / "enclaves.json").write_text(json.dumps([left, others]))
    keeping = Keeping(parent.deployment, lambda _: True)
    until(lambda: keeping.notified, within_s=20, what="READY")
    assert [each["EnclaveName"] for each in parent.enclaves] == ["another", "mrgc"]
    assert "old" not in [each["EnclaveID"] for each in parent.enclaves]
    keeping.stopping.set()
    keeping.end()
    assert [each["EnclaveID"] for each in parent.enclaves] == ["theirs"]


def test_an_enclave_that_ends_ends_its_keeper(parent: Parent) -> None:
    """Systemd then starts both anew."""
    keeping = Keeping(parent.deployment, lambda _: True)
    until(lambda: keeping.notified, within_s=20, what="READY")
    (parent.folder / "enclaves.json").write_text("[]")
    assert keeping.end() == 1


def test_a_silent_enclave_is_ended(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that runs and no longer answers helps nobody."""
    monkeypatch.setattr(nitro, "SILENT_S", 0.1)
    answers = iter([True, True])
    keeping = Keeping(parent.deployment, lambda _: next(answers, False))
    assert keeping.end() == 1
    assert keeping.notified == ["READY=1"]
    assert parent.enclaves == []


def test_an_image_that_was_not_published_is_not_started(parent: Parent) -> None:
    """Were it started, KMS would refuse it every key: the operator learns it here, with the files' names."""
    pcrs = reader.read(parent.deployment.image).pcrs
    parent.publish(pcrs | {0: pcrs[1]})
    with pytest.raises(ConfigError, match=r"image\.eif is not the image of .*pcrs\.json"):
        nitro.keep(parent.deployment, threading.Event(), is_healthy=lambda _: True, notify=lambda _: None)
    assert parent.calls == []


@pytest.mark.parametrize(
    "differs",
    [{"Flags": "DEBUG_MODE"}, {"EnclaveCID": 20}, {"State": "TERMINATING"}, {"Measurements": {"PCR0": "00" * 48}}],
)
def test_an_enclave_that_runs_otherwise_than_asked_is_refused(parent: Parent, differs: dict[str, Any]) -> None:
    """Debug mode, another CID, another state or another measurement: no address is handed out."""
    parent.differs(**differs)
    with pytest.raises(ConfigError):
        nitro.keep(parent.deployment, threading.Event(), is_healthy=lambda _: True, notify=lambda _: None)
    assert not parent.deployment.env_file.exists()


@pytest.mark.parametrize("program", ["echo not json", "echo '[{}]'", "echo '{}'", "echo no memory >&2; exit 1"])
def test_a_nitro_cli_that_fails_says_so(parent: Parent, program: str) -> None:
    """Whatever it answers, the reason comes out and nothing is taken for running."""
    (parent.folder / "bin" / "nitro-cli").write_text(f"#!/bin/sh\n{program}\n")
    with pytest.raises(ConfigError, match="nitro-cli"):
        nitro.keep(parent.deployment, threading.Event(), is_healthy=lambda _: True, notify=lambda _: None)


def test_a_proxy_reaches_one_host_and_serves_every_connection(tmp_path: Path) -> None:
    """Its list has one entry, its port is the image's, and it has a worker per KMS call in flight."""
    command = nitro.proxy_command("eu-west-1", tmp_path / "allowed.yaml")
    host = "kms.eu-west-1.amazonaws.com"
    assert command == ["vsock-proxy", "8006", host, "443", "-w", "16", "--config", str(tmp_path / "allowed.yaml")]
    assert int(command[5]) >= KMS_THREADS
    assert (tmp_path / "allowed.yaml").read_text() == f"allowlist:\n- {{address: {host}, port: 443}}\n"
    assert nitro.proxy_command("us-gov-west-1", tmp_path / "gov.yaml")[2] == "kms.us-gov-west-1.amazonaws.com"


def test_a_debug_run_is_another_command_and_a_loud_one(parent: Parent, capfd: pytest.CaptureFixture[str]) -> None:
    """It has another name than the enclave of the service, and says what it gives up."""
    command = nitro.debug_command(parent.deployment.image)
    assert "--debug-mode" in command
    assert command[command.index("--enclave-name") + 1] != nitro.NAME
    assert nitro.main(["debug", "--image", str(parent.folder / "absent.eif")]) == 2
    assert "absent.eif" in capfd.readouterr().err
    assert "PCR0, PCR1 and PCR2 are zero" in nitro.DEBUG_WARNING


looks = st.lists(st.tuples(st.floats(0.1, 50), st.booleans(), st.booleans()), max_size=30)


@given(looks)
def test_a_watch_gives_up_exactly_when_it_should(seen: list[tuple[float, bool, bool]]) -> None:
    """Not running ends it at once; silence ends it after the boot's limit, or after the limit since the last answer."""
    watch, now, last = Watch(0.0), 0.0, None
    for pause, running, answered in seen:
        now += pause
        last = now if answered else last
        limit = now > BOOT_S if last is None else now - last > SILENT_S
        assert watch.is_over(now, running=running, answered=answered) == (not running or limit)


def test_a_deployments_cid_can_be_chosen(parent: Parent) -> None:
    """A second enclave on the same parent needs a CID of its own."""
    keeping = Keeping(replace(parent.deployment, cid=20), lambda cid: cid == 20)
    until(lambda: keeping.notified, within_s=20, what="READY")
    assert parent.deployment.env_file.read_text() == "MRGC_ENCLAVE=vsock:20:5000\n"
    keeping.stopping.set()
    assert keeping.end() == 0
