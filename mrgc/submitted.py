"""The tenant's record of the jobs it submitted: what a result is compared with (docs/spec.md §4).

A job is recorded before it is enqueued, so no crash leaves a job whose result nobody could open. Rows are only ever
added. The file holds no secret: wrapped keys and hashes; it is still 0600, because it says what was asked and when.

Called by `mrgc.client`. May import: the standard library, mrgc.errors, mrgc.wire.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from mrgc.errors import ConfigError
from mrgc.wire.sealed import SealedJob

_SCHEMA_VERSION: Final = 1
_LOCK_WAIT_S: Final = 30.0  #: Several `mrgc submit` at once take turns.
#: One data key serves up to 2^20 jobs: kept once, a job costs about 75 bytes instead of 500.
_SCHEMA: Final = """
CREATE TABLE data_keys (
    id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, key_arn TEXT NOT NULL, edk BLOB NOT NULL, context TEXT NOT NULL,
    UNIQUE (tenant, key_arn, edk, context)
);
CREATE TABLE jobs (
    job BLOB PRIMARY KEY, data_key INTEGER NOT NULL REFERENCES data_keys, request BLOB NOT NULL, model TEXT NOT NULL,
    items INTEGER NOT NULL, floor INTEGER NOT NULL, created INTEGER NOT NULL, expires INTEGER NOT NULL
) WITHOUT ROWID;
"""
_ADD_KEY: Final = """
INSERT INTO data_keys (tenant, key_arn, edk, context) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING
"""
#: A sealed job that is sent again is on record already.
_ADD_JOB: Final = """
INSERT INTO jobs SELECT ?, id, ?, ?, ?, ?, ?, ? FROM data_keys
WHERE tenant = ? AND key_arn = ? AND edk = ? AND context = ? ON CONFLICT (job) DO NOTHING
"""
_FIND: Final = """
SELECT tenant, job, request, key_arn, edk, context, model, items, floor, created, expires
FROM jobs JOIN data_keys ON data_keys.id = jobs.data_key WHERE job = ?
"""


class SubmittedJob(NamedTuple):
    """What a tenant keeps of a job. All of it is public."""

    tenant: str
    job: bytes
    #: SHA-256 of the sealed job.
    request: bytes
    key_arn: str
    edk: bytes
    context: dict[str, str]
    model: str
    items: int
    floor: int
    #: Unix seconds.
    created: int
    expires: int

    @classmethod
    def of(cls, sealed: SealedJob) -> SubmittedJob:
        """Take the record of a job from its sealed form."""
        header = sealed.header
        return cls(
            tenant=header.tenant,
            job=header.job,
            request=sealed.request,
            key_arn=header.key_arn,
            edk=header.edk,
            context=header.context,
            model=header.model,
            items=header.items,
            floor=header.floor,
            created=header.created,
            expires=header.expires,
        )

    @property
    def id(self) -> str:
        """The job id as commands take and print it: 32 hex digits."""
        return self.job.hex()


class SubmittedJobs:
    """The records of one state folder, in an SQLite file in WAL mode.

    A look-up costs one B-tree descent, an `add` one transaction and one fsync, at a million jobs as at ten.

    Args:
        folder: made 0700 if absent.

    Raises:
        ConfigError: the file cannot be made, opened or read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "submitted.sqlite3"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite would create it with the umask's mode, and gives its -wal and -shm files the mode of this one.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = self._open()
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error

    def add(self, jobs: Sequence[SubmittedJob]) -> None:
        """Record jobs, all or none; they are on the disk when this returns.

        Raises:
            ConfigError: the record cannot be written.
        """
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany(_ADD_KEY, {_key_row(job) for job in jobs})
                self._db.executemany(_ADD_JOB, (_job_row(job) + _key_row(job) for job in jobs))
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def find(self, job: bytes) -> SubmittedJob | None:
        """Look a job up by its 16-byte id; None if it was not submitted with this state folder.

        Raises:
            ConfigError: the record cannot be read.
        """
        try:
            row = self._db.execute(_FIND, (job,)).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        if row is None:
            return None
        found = SubmittedJob(*row)
        return found._replace(context=json.loads(row[5]))

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _open(self) -> sqlite3.Connection:
        # A client is used by one thread at a time, but need not be used by the thread that made it.
        db = sqlite3.connect(self._path, timeout=_LOCK_WAIT_S, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("BEGIN IMMEDIATE")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            elif version != _SCHEMA_VERSION:
                raise ConfigError(f"records in {self._path} were made by another version of mrgc")
            db.execute("COMMIT")
        except BaseException:
            db.close()
            raise
        return db

    def _unusable(self, error: Exception) -> ConfigError:
        return ConfigError(f"cannot use the records of submitted jobs in {self._path} (MRGC_STATE): {error}")


def _key_row(job: SubmittedJob) -> tuple[object, ...]:
    return job.tenant, job.key_arn, job.edk, json.dumps(job.context, sort_keys=True)


def _job_row(job: SubmittedJob) -> tuple[object, ...]:
    return job.job, job.request, job.model, job.items, job.floor, job.created, job.expires
