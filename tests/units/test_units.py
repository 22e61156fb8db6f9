"""The systemd units: valid, one user each, closed as far as the process allows, and in step with the code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

from infra.eif.profiles import memory_mib
from infra.nitro import CID
from mrgc.wire.addresses import FIRST_VSOCK_CID

UNITS: Final = Path(__file__).parents[2] / "infra" / "units"
SERVICES: Final = sorted(path.name for path in UNITS.glob("*.service"))
#: Highest exposure that `systemd-analyze security` may give, of 10. The agent is root; the engine needs a driver.
EXPOSURE: Final = defaultdict(lambda: 20, {"mrgc-agent.service": 25})

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
each_service = pytest.mark.parametrize("name", SERVICES)


def settings(name: str) -> dict[str, list[str]]:
    """Return the settings of a unit file, with each one's values in order."""
    found = defaultdict(list)
    text = re.sub(r"\\\n\s*", " ", (UNITS / name).read_text())
    for line in text.splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found[key].append(value)
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay the units out with paths of this machine, an instance of each template, and the allocator that AWS ships."""
    folder = tmp_path_factory.mktemp("units")
    for path in UNITS.glob("mrgc*"):
        text = path.read_text().replace("/opt/mrgc/.venv/bin/python", sys.executable)
        (folder / path.name.replace("@", "@cpu" if "engine" in path.name else "@eu-west-1")).write_text(
            text.replace("/opt/mrgc", str(UNITS.parents[1]))
        )
    (folder / "nitro-enclaves-allocator.service").write_text("[Service]\nType=oneshot\nExecStart=/bin/true\n")
    return folder


@needs_systemd
def test_systemd_accepts_every_unit(installed: Path) -> None:
    """No setting is misspelt, no dependency and no program is missing."""
    for unit in sorted(installed.glob("mrgc*")):
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(unit)],
            env={"PATH": "/usr/bin:/bin", "SYSTEMD_UNIT_PATH": f"{installed}:"},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), unit.name


@needs_systemd
@each_service
def test_a_service_is_closed_as_far_as_it_can_be(installed: Path, name: str) -> None:
    """Systemd's own audit finds little left to close."""
    unit = installed / name.replace("@", "@cpu" if "engine" in name else "@eu-west-1")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", f"--threshold={EXPOSURE[name]}", str(unit)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@each_service
def test_a_service_runs_a_program_that_is_there(name: str) -> None:
    """Each starts a module of this repository, or Celery, with this repository's Python."""
    (command,) = settings(name)["ExecStart"]
    python, option, module, *_ = command.split()
    assert (python, option) == ("/opt/mrgc/.venv/bin/python", "-m")
    assert find_spec(module) is not None


def test_every_process_has_a_user_of_its_own() -> None:
    """No two services share a user, and every user and group is made by sysusers.conf, but root and AWS's ne."""
    users = [user for name in SERVICES for user in settings(name)["User"]]
    assert len(users) == len(set(users)) == len(SERVICES) - 1  # the proxies' is made for each by systemd
    named = {
        word for name in SERVICES for key in ("User", "Group", "SupplementaryGroups") for word in settings(name)[key]
    }
    made = set(re.findall(r"^[ug] (\S+)", (UNITS / "sysusers.conf").read_text(), re.MULTILINE))
    assert named - made == {"root", "ne"}


def test_the_worker_cannot_read_the_enclaves_token() -> None:
    """The token's folder is open to the engines' group, in which the worker is not; their sockets are of another."""
    agent, engine, worker = (settings(f"mrgc-{name}.service") for name in ("agent", "engine@", "worker"))
    (token_group,) = agent["Group"]
    assert agent["RuntimeDirectoryMode"] == ["0750"]
    assert token_group in engine["SupplementaryGroups"]
    assert token_group not in (*worker["Group"], *worker["SupplementaryGroups"])
    assert engine["Group"] == worker["SupplementaryGroups"]


@pytest.mark.parametrize("name", ["mrgc-engine@.service", "mrgc-enclave.service"])
def test_what_needs_no_network_has_none(name: str) -> None:
    """Engine and enclave speak over unix sockets and vsock only."""
    assert settings(name)["RestrictAddressFamilies"] == ["AF_UNIX AF_VSOCK"]
    assert settings(name)["IPAddressDeny"] == ["any"]


def test_no_unit_starts_an_enclave_in_debug_mode() -> None:
    """A debug run is done by hand; no file that starts by itself can do it."""
    commands = [command for name in SERVICES for command in settings(name)["ExecStart"]]
    assert [command for command in commands if "debug" in command] == []


def test_the_allocator_sets_enough_aside() -> None:
    """allocator.yaml covers an image of 64 MB, which is more than ours has, on a CID that is free."""
    found = dict(re.findall(r"^(\w+): (\d+)$", (UNITS / "allocator.yaml").read_text(), re.MULTILINE))
    assert int(found["memory_mib"]) >= memory_mib(64_000_000)
    assert found["cpu_count"] == "2"
    assert CID > FIRST_VSOCK_CID
