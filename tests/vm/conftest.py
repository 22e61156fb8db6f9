"""A back end in a thread, and a front end that has connected to it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from infra.local_nsm import LocalNsm, create_pki
from infra.nsm_commands import NsmCommands
from infra.vhost_nsm import VhostNsm
from tests.vm.front_end import FrontEnd

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
