"""`python -m worker.access`: what it prints, the passwords that it keeps, and what it says when it cannot."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path

import pytest

from tests.intake.sealing import REGISTRY
from worker import access


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """A registry of two tenants."""
    file = tmp_path / "tenants.toml"
    file.write_text(REGISTRY)
    return file


def run(*words: object) -> int:
    """Run the command."""
    return access.main([str(word) for word in words])


def test_the_aclfile_holds_hashes_only_and_passwords_are_private(
    registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user per role and tenant; the password of each is in a file of its owner's alone, and nowhere else."""
    assert run("redis", "--registry", registry, "--passwords", tmp_path / "pw") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "user default off"
    names = [line.split()[1] for line in lines[1:]]
    assert names == ["operator", "worker", "control", "edge", "producer", "tenant-acme", "tenant-globex"]
    for line, name in zip(lines[1:], names, strict=True):
        file = tmp_path / "pw" / name
        (password,) = file.read_text().split()
        assert len(password) >= 43
        assert f"#{hashlib.sha256(password.encode()).hexdigest()}" in line.split()
        assert password not in "\n".join(lines)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "pw").stat().st_mode) == 0o700


def test_passwords_stay_and_two_may_be_valid_at_once(
    registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second run changes nothing; a second line in a file is a second password, so that one can be replaced."""
    words = ("redis", "--registry", registry, "--passwords", tmp_path / "pw", "--commands")
    run(*words)
    first = capsys.readouterr().out
    run(*words)
    assert capsys.readouterr().out == first
    with (tmp_path / "pw" / "tenant-acme").open("a") as file:
        file.write("another\n")
    run(*words)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if " tenant-acme " in line)
    assert line.startswith("ACL SETUSER tenant-acme reset on #")
    assert line.count("#") == 2


def test_a_tenant_that_left_the_registry_has_no_user(
    registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ACL LOAD of the next aclfile removes the user."""
    registry.write_text("[tenants.acme]\n")
    run("redis", "--registry", registry, "--passwords", tmp_path / "pw", "--server", "6.2")
    assert "tenant-globex" not in capsys.readouterr().out


def test_what_is_wrong_is_said(registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing registry, an emptied password file and a malformed ARN each end with exit code 2 and a line."""
    assert run("redis", "--registry", tmp_path / "absent", "--passwords", tmp_path / "pw") == 2
    assert "registry" in capsys.readouterr().err
    (tmp_path / "pw").mkdir()
    (tmp_path / "pw" / "worker").write_text("\n")
    assert run("redis", "--registry", registry, "--passwords", tmp_path / "pw") == 2
    assert "worker holds no password" in capsys.readouterr().err
    assert run("sqs", "--queue-arn", "x", "--worker-role", "y") == 2
    assert "queue_arn" in capsys.readouterr().err


def test_a_queue_policy_is_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """The text is what SetQueueAttributes takes as Policy."""
    queue, role = "arn:aws:sqs:eu-west-1:111122223333:mrgc-acme", "arn:aws:iam::111122223333:role/mrgc-worker"
    tenant = "arn:aws:iam::444455556666:role/acme"
    assert run("sqs", "--queue-arn", queue, "--worker-role", role, "--tenant-principal", tenant) == 0
    policy = json.loads(capsys.readouterr().out)
    assert {statement["Effect"] for statement in policy["Statement"]} == {"Allow", "Deny"}
