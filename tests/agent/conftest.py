"""Fixtures of the agent's tests: a KMS and an enclave as the enclave's own tests run them."""

from __future__ import annotations

import socket

import pytest

from tests.enclave.conftest import enclave, kms, pki

__all__ = ["enclave", "kms", "pki"]


@pytest.fixture
def unused_tcp_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
