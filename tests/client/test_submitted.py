"""The record of submitted jobs: durable, private, shared by processes, and quick at any size."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mrgc.errors import ConfigError
from mrgc.submitted import SubmittedJob, SubmittedJobs
from tests.client.tenants import REPOSITORY

JOB = SubmittedJob(
    tenant="acme",
    job=bytes(16),
    request=b"\x07" * 32,
    key_arn="arn:aws:kms:eu-west-1:123456789012:key/1",
    edk=b"wrapped",
    context={"mrgc:tenant": "acme", "mrgc:use": "job"},
    model="m",
    items=3,
    floor=1,
    created=1,
    expires=2,
)

WRITER = """
import os, sys
from pathlib import Path
from tests.client.test_submitted import JOB
from mrgc.submitted import SubmittedJobs
records = SubmittedJobs(Path(sys.argv[1]))
for number in range(20):
    records.add([JOB._replace(job=os.urandom(16)) for _ in range(5)])
os._exit(0)  # no close, no clean-up: what was added is on the disk
"""


def test_a_record_comes_back_whole(tmp_path: Path) -> None:
    """Everything that a result is compared with survives the process."""
    records = SubmittedJobs(tmp_path)
    records.add([JOB, JOB._replace(job=b"\x01" * 16, edk=b"other")])
    records.close()
    again = SubmittedJobs(tmp_path)
    assert again.find(JOB.job) == JOB
    other = again.find(b"\x01" * 16)
    assert other is not None
    assert other.edk == b"other"
    assert again.find(b"\x02" * 16) is None
    again.close()


def test_the_files_are_the_owners_alone(tmp_path: Path) -> None:
    """Folder 0700 and files 0600, whatever the umask: they say what was asked, and when."""
    before = os.umask(0)
    try:
        records = SubmittedJobs(tmp_path / "state")
        records.add([JOB])
    finally:
        os.umask(before)
    files = list((tmp_path / "state").iterdir())
    assert len(files) == 3  # the database, its -wal and its -shm
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    records.close()


def test_processes_that_submit_at_once_lose_no_record(tmp_path: Path) -> None:
    """Four processes that start together on an empty folder, and end without clean-up, record all their jobs."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "state")]
    writers = [subprocess.Popen(command, cwd=REPOSITORY) for _ in range(4)]
    assert [writer.wait(50) for writer in writers] == [0] * 4
    with sqlite3.connect(tmp_path / "state" / "submitted.sqlite3") as db:
        assert db.execute("SELECT count(*) FROM jobs").fetchone() == (400,)
        assert db.execute("SELECT count(*) FROM data_keys").fetchone() == (1,)
    db.close()


def test_a_batch_is_recorded_whole_or_not_at_all(tmp_path: Path) -> None:
    """A failure in the middle of a batch leaves none of it behind."""
    records = SubmittedJobs(tmp_path)
    incomplete = JOB._replace(job=b"\x01" * 16, model=None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="NOT NULL"):
        records.add([JOB, incomplete])
    assert records.find(JOB.job) is None
    records.close()


def test_a_record_is_found_without_reading_the_others(tmp_path: Path) -> None:
    """A look-up descends one tree: SQLite's plan scans nothing."""
    records = SubmittedJobs(tmp_path)
    plan = records._db.execute(
        "EXPLAIN QUERY PLAN SELECT * FROM jobs JOIN data_keys ON id = data_key WHERE job = x'00'"
    )
    assert [row[3].split()[0] for row in plan] == ["SEARCH", "SEARCH"]
    records.close()


def test_records_of_another_version_are_left_alone(tmp_path: Path) -> None:
    """A newer file is refused, not rewritten."""
    SubmittedJobs(tmp_path).close()
    with sqlite3.connect(tmp_path / "submitted.sqlite3") as db:
        db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(ConfigError, match="another version"):
        SubmittedJobs(tmp_path)


@pytest.mark.parametrize("content", [b"not a database" * 100, b""])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    """Rubbish where the records belong ends with its path; an empty file is a new record."""
    (tmp_path / "submitted.sqlite3").write_bytes(content)
    if not content:
        SubmittedJobs(tmp_path).close()
        return
    with pytest.raises(ConfigError, match=r"submitted\.sqlite3"):
        SubmittedJobs(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file in the folder's place ends with its path."""
    (tmp_path / "state").write_text("")
    with pytest.raises(ConfigError, match="MRGC_STATE"):
        SubmittedJobs(tmp_path / "state")
