"""Fixtures of the enclave's tests: one KMS process for all, one enclave per test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local_nsm import LocalNsm, create_pki
from tests.enclave.stack import PCRS, Caller, Kms, RunningEnclave


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a throw-away NSM root."""
    directory = tmp_path_factory.mktemp("nsm")
    create_pki(directory)
    return directory


@pytest.fixture(scope="session")
def kms(tmp_path_factory: pytest.TempPathFactory, pki: Path) -> Iterator[Kms]:
    """Run a KMS that trusts that root."""
    running = Kms(tmp_path_factory.mktemp("kms"), pki)
    yield running
    running.stop()


@pytest.fixture
def enclave(tmp_path: Path, pki: Path, kms: Kms) -> Iterator[RunningEnclave]:
    """Run an enclave that has just booted."""
    with RunningEnclave(tmp_path / "e.sock", LocalNsm(pki, PCRS), kms) as running:
        yield running


@pytest.fixture
def caller(enclave: RunningEnclave) -> Iterator[Caller]:
    """Connect as an engine to an enclave that has its token and credentials."""
    with enclave.serving() as connected:
        yield connected


@pytest.fixture
def reboot(tmp_path: Path, pki: Path, kms: Kms) -> Iterator[RunningEnclave]:
    """Run a second boot of the same image."""
    with RunningEnclave(tmp_path / "second.sock", LocalNsm(pki, PCRS), kms) as running:
        yield running
