"""Socket addresses: two forms, nothing else."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from mrgc.errors import ConfigError
from mrgc.wire import addresses


@pytest.mark.parametrize("text", ["unix:/run/mrgc/engine.sock", "vsock:16:5000", "vsock:3:8000"])
def test_an_address_prints_as_it_was_written(text: str) -> None:
    """Parsing and printing are inverse."""
    assert str(addresses.parse_address(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "unix:", "unix:" + "x" * 108, "tcp:127.0.0.1:1", "vsock:2:5000", "vsock:16", "vsock:4294967296:1", "/run/x"],
)
def test_any_other_address_is_a_config_error(text: str) -> None:
    """Network families, the host's CID and overlong paths are refused."""
    with pytest.raises(ConfigError):
        addresses.parse_address(text)


def test_a_listener_replaces_a_dead_socket_file_but_no_other_file(tmp_path: Path) -> None:
    """A stale socket is taken over with the asked mode; an ordinary file is left alone."""
    address = addresses.parse_address(f"unix:{tmp_path}/s")
    addresses.listen(address, backlog=1).close()
    with addresses.listen(address, backlog=1, mode=0o600) as listener:
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
        with addresses.connect(address, timeout_s=5) as client:
            assert client.family == socket.AF_UNIX
            assert client.gettimeout() == 5
            listener.accept()[0].close()
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OSError, match="in use"):
        addresses.listen(addresses.parse_address(f"unix:{tmp_path}/file"), backlog=1)
    assert (tmp_path / "file").read_text() == "precious"
