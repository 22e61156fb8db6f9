"""Fixtures of the engine's tests: one KMS for all, one enclave per test that asks for it."""

from __future__ import annotations

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
    """An engine process beside an enclave that has just booted."""
    host.boot()
    started = EngineProcess(
        tmp_path, MRGC_ENCLAVE=str(host.enclave), MRGC_TOKEN_FILE=str(host.token_file), MRGC_MODELS=str(models)
    )
    with started.running():
        yield started.listening().healthy()
