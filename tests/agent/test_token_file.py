from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from worker.token_file import read_token, write_token

TOKEN = bytes(range(32))


def test_the_group_reads_and_nobody_else(tmp_path: Path) -> None:
    """Mode 0640, whatever the umask."""
    previous = os.umask(0)
    try:
        write_token(tmp_path / "token", TOKEN)
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o640
    assert read_token(tmp_path / "token") == TOKEN


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    """While the token is replaced a thousand times, every read gives one whole token, and nothing is left over."""
    path = tmp_path / "token"
    write_token(path, bytes(32))
    seen: set[bytes | None] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(read_token(path))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(300):
        write_token(path, bytes([number % 256]) * 32)
    done.set()
    reader.join(10)
    assert all(token is not None and len(set(token)) == 1 for token in seen)
    assert [entry.name for entry in tmp_path.iterdir()] == ["token"]


@pytest.mark.parametrize("content", [b"", TOKEN[:-1], TOKEN + b"\n"])
def test_what_is_no_token_is_none(tmp_path: Path, content: bytes) -> None:
    """A file of another length, or no file, is no token."""
    path = tmp_path / "token"
    assert read_token(path) is None
    path.write_bytes(content)
    assert read_token(path) is None


def test_a_token_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    """A folder in the token's place is an error, and no temporary file stays."""
    (tmp_path / "token").mkdir()
    (tmp_path / "token" / "full").touch()
    with pytest.raises(OSError, match="token"):
        write_token(tmp_path / "token", TOKEN)
    assert [entry.name for entry in tmp_path.iterdir()] == ["token"]
