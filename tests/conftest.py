"""Settings that every test shares: a clean environment and hypothesis without wall-clock limits."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A shared two-core machine stops processes for seconds: only the suite's own timeout limits an example.
settings.register_profile("mrgc", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mrgc")

#: Variables that would let a developer's own account, proxy or stack reach into a test.
_FOREIGN_PREFIXES = ("AWS_", "MRGC_", "BOTO_", "CELERY_")
_FOREIGN_NAMES = (
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip
#: Switches of the suite itself stay.
_OWN_NAMES = ("MRGC_REQUIRE_SERVERS", "MRGC_REQUIRE_VM")


@pytest.fixture(scope="session", autouse=True)
def _clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide the developer's credentials, endpoints and proxies from every test and every process it starts."""
    home: Path = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name in _OWN_NAMES:
                continue
            if name.startswith(_FOREIGN_PREFIXES) or name.upper() in _FOREIGN_NAMES:
                patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("XDG_STATE_HOME", str(home / "state"))
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        yield


@pytest.fixture(autouse=True)
def _default_socket_timeout() -> Iterator[None]:
    """Put back the process-wide socket timeout, which an in-process Celery shutdown changes."""
    before = socket.getdefaulttimeout()
    yield
    socket.setdefaulttimeout(before)
