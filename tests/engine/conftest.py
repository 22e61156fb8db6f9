"""Fixtures of the engine's tests: one KMS for all, one enclave per test that asks for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import tiny_model
from infra.local_nsm import create_pki
from tests.enclave.stack import DataKey, Kms
from tests.engine.host import EngineProcess, Host
from worker.models import registry
from worker.models.registry import Registry


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a throw-away NSM root."""
    directory = tmp_path_factory.mktemp("nsm")
    create_pki(directory)
    return directory


@pytest.fixture(scope="session")
def kms(tmp_path_factory: pytest.TempPathFactory, pki: Path) -> Iterator[Kms]:
    """A KMS process that trusts that root."""
    running = Kms(tmp_path_factory.mktemp("kms"), pki)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def data_key(kms: Kms) -> DataKey:
    """A tenant's data key."""
    return kms.data_key()


@pytest.fixture
def host(tmp_path: Path, pki: Path, kms: Kms, data_key: DataKey) -> Iterator[Host]:
    """A host without an enclave; `boot` starts one."""
    made = Host(tmp_path, pki, kms, data_key)
    yield made
    made.shut_down()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of model folders that holds the tiny model."""
    folder = tmp_path_factory.mktemp("models")
    tiny_model.write(folder)
    return folder


@pytest.fixture(scope="session")
def served(models: Path) -> Registry:
    """The tiny model, loaded in this process."""
    return registry.load(models, device="cpu", dtype="fp32")


@pytest.fixture
def engine(tmp_path: Path, host: Host, models: Path) -> Iterator[EngineProcess]:
    """An engine process beside an enclave that has just booted, for tests that hurt one of them."""
    with _engine(tmp_path, host, models) as started:
        yield started


@pytest.fixture(scope="module")
def calm_host(tmp_path_factory: pytest.TempPathFactory, pki: Path, kms: Kms, data_key: DataKey) -> Iterator[Host]:
    """A host for a whole file."""
    made = Host(tmp_path_factory.mktemp("host"), pki, kms, data_key)
    yield made
    made.shut_down()


@pytest.fixture(scope="module")
def calm_engine(tmp_path_factory: pytest.TempPathFactory, calm_host: Host, models: Path) -> Iterator[EngineProcess]:
    """An engine process for all tests of a file that leave it as it was: starting one takes seconds."""
    with _engine(tmp_path_factory.mktemp("engine"), calm_host, models) as started:
        yield started


@contextlib.contextmanager
def _engine(directory: Path, host: Host, models: Path) -> Iterator[EngineProcess]:
    host.boot()
    started = EngineProcess(
        directory, MRGC_ENCLAVE=str(host.enclave), MRGC_TOKEN_FILE=str(host.token_file), MRGC_MODELS=str(models)
    )
    with started.running():
        yield started.listening().healthy()
