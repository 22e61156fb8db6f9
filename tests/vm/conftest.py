"""A back end in a thread with a front end, and whole virtual machines."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from infra.eif.build import Plan, build
from infra.eif.fetch import CACHE, PackageCache
from infra.eif.pins import read_locks
from infra.eif.profiles import VM
from infra.local_nsm import LocalNsm, create_pki
from infra.nsm_commands import NsmCommands
from infra.vhost_nsm import VhostNsm
from infra.vm_tools import Tools
from mrgc.errors import ConfigError
from tests.enclave.stack import Kms
from tests.vm.front_end import FrontEnd
from tests.vm.machines import Machine

PCRS = {index: bytes([index + 1]) * 48 for index in (0, 1, 2)}


class Device:
    """Starts back ends for front ends, and ends them all."""

    def __init__(self, pki: Path) -> None:
        self._nsm = LocalNsm(pki, PCRS)
        self._cleanup = ExitStack()

    def connect(self, **options: int) -> FrontEnd:
        """Start a back end of its own boot, and return a front end connected to it."""
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=VhostNsm(theirs, NsmCommands(self._nsm)).serve)
        thread.start()
        front = FrontEnd(ours, **options)  # type: ignore[arg-type]
        self._cleanup.callback(thread.join, 20)
        self._cleanup.callback(front.close)
        return front

    def end(self) -> None:
        """Disconnect every front end and wait for its back end."""
        self._cleanup.close()


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a test root and its signer."""
    folder = tmp_path_factory.mktemp("nsm")
    create_pki(folder)
    return folder


@pytest.fixture
def device(pki: Path) -> Iterator[Device]:
    """Return a maker of connections."""
    made = Device(pki)
    yield made
    made.end()


@pytest.fixture
def front(device: Device) -> FrontEnd:
    """Return a front end whose queue runs."""
    connected = device.connect()
    connected.start()
    return connected


@pytest.fixture(scope="session")
def _vm_tools() -> None:
    """Demand QEMU for enclave VMs; without it there is nothing to boot."""
    try:
        Tools()
    except ConfigError as error:
        if os.environ.get("MRGC_REQUIRE_VM") == "1":
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def packages(_vm_tools: None) -> PackageCache:
    """Return the image's packages, fetched where they are not."""
    cache = PackageCache(CACHE, mirrors={})
    cache.ensure(read_locks())
    return cache


@pytest.fixture(scope="session")
def kms(tmp_path_factory: pytest.TempPathFactory, pki: Path) -> Iterator[Kms]:
    """Run a KMS that trusts the test root."""
    running = Kms(tmp_path_factory.mktemp("kms"), pki)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def image(packages: PackageCache, kms: Kms, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build an image that trusts that KMS, and return the folder with its three files."""
    out = tmp_path_factory.mktemp("image")
    build(Plan(profile=VM, kms_roots=kms.ca), packages, out=out)
    return out


@pytest.fixture(scope="session")
def machine(image: Path, pki: Path, kms: Kms, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Boot the image once for all tests; each leaves it serving."""
    running = Machine(image / "mrgc-enclave.eif", tmp_path_factory.mktemp("vm"), pki=pki, kms=kms)
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()
