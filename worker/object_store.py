"""Results and claim checks in S3 or a directory: create-only writes, capped reads.

A result object is written once and never changed. obstore reports "exists" both for S3's 412 (something is there) and
its 409 (somebody is writing, perhaps in vain), so this module looks before it says that a result is stored.

May import: the standard library, obstore, mrgc.errors, mrgc.wire. Called by worker.settle, on its asyncio loop.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, S3Store

from mrgc.errors import BodyMissing, ConfigError, StoreUnavailable
from mrgc.wire.strict_cbor import Buffer

#: A result of 32 MiB at 1 MiB/s.
REQUEST_TIMEOUT_S: Final = 60
CONNECT_TIMEOUT_S: Final = 5
#: obstore's own retries of one request; beyond them the intake's backoff decides.
RETRIES: Final = 2
#: Times that "exists, and yet not there" is answered by another write before it counts as an outage.
CREATE_TRIES: Final = 3
#: Files that are flushed at the same time.
FLUSHERS: Final = 16
#: docs/spec.md §4: directories above a result object: job, tenant, prefix.
NAME_DEPTH: Final = 3


class ObjectStore:
    """Objects by URL, file:///directory/name or s3://bucket/name.

    Args:
        s3_endpoint: of a stand-in for S3; None is AWS. Credentials and region come from the environment or the
            instance's role.
    """

    def __init__(self, *, s3_endpoint: str | None = None) -> None:
        self._s3_endpoint = s3_endpoint
        self._root: LocalStore | None = None
        self._buckets: dict[str, S3Store] = {}
        self._flushers = ThreadPoolExecutor(FLUSHERS, thread_name_prefix="flush")

    async def create(self, url: str, body: Buffer) -> None:
        """Store an object unless one of that name exists. In a directory it is safe only after a `flush`.

        Args:
            url: its name.
            body: its bytes.

        Raises:
            StoreUnavailable: it is not certain that an object of that name is stored.
        """
        store, path = self._locate(url)
        with _mapped_errors():
            for _ in range(CREATE_TRIES):
                try:
                    await obstore.put_async(store, path, body, mode="create")
                except AlreadyExistsError:
                    if not await _exists(store, path):
                        continue
                return
        raise StoreUnavailable("object exists, and yet is not there")

    def flush(self, urls: Sequence[str]) -> None:
        """Make objects survive a loss of power; blocks.

        S3 answers when an object is safe. obstore leaves a directory's files in the page cache, and an ack must not
        outlive its result: so the files, and the directories that their names may have made, are flushed here.

        Args:
            urls: of objects that `create` has stored.

        Raises:
            StoreUnavailable: it is not certain that all of them are safe.
        """
        files = [Path(unquote(urlsplit(url).path)) for url in urls if url.startswith("file:")]
        # dict.fromkeys: a batch shares its upper directories, and flushing them once is enough.
        directories = dict.fromkeys(parent for file in files for parent in file.parents[:NAME_DEPTH])
        with _mapped_errors():
            # Together, so that the file system commits many of them at once.
            for _ in self._flushers.map(_sync_to_disk, (*files, *directories)):
                pass

    async def read(self, url: str, *, size_bytes: int) -> bytes:
        """Read an object whose length is known.

        Args:
            url: its name.
            size_bytes: the length that it must have; nothing is read of another one.

        Raises:
            BodyMissing: it does not exist, may not be read, or has another length.
            StoreUnavailable: the store does not answer.
        """
        store, path = self._locate(url)
        with _mapped_errors():
            try:
                answer = await obstore.get_async(store, path)
            except FileNotFoundError as err:
                raise BodyMissing("claim check names no object") from err
            if answer.meta["size"] != size_bytes:
                raise BodyMissing("object has another length than its claim check says")
            return bytes(await answer.bytes_async())

    def _locate(self, url: str) -> tuple[LocalStore | S3Store, str]:
        parts = urlsplit(url)
        if parts.scheme == "file":
            if self._root is None:
                self._root = LocalStore("/")
            return self._root, unquote(parts.path).lstrip("/")
        bucket = self._buckets.get(parts.netloc)
        if bucket is None:
            bucket = self._buckets[parts.netloc] = self._open_bucket(parts.netloc)
        return bucket, parts.path.lstrip("/")

    def _open_bucket(self, bucket: str) -> S3Store:
        try:
            return S3Store(
                bucket,
                endpoint=self._s3_endpoint,
                client_options={
                    "timeout": timedelta(seconds=REQUEST_TIMEOUT_S),
                    "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
                    # Plain http only where the configured endpoint says so: obstore refuses it otherwise.
                    "allow_http": (self._s3_endpoint or "").startswith("http://"),
                },
                retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=REQUEST_TIMEOUT_S)},
            )
        except BaseError as err:
            raise ConfigError(f"bucket {bucket} cannot be used") from err


async def _exists(store: LocalStore | S3Store, path: str) -> bool:
    try:
        await obstore.head_async(store, path)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _mapped_errors() -> Iterator[None]:
    """Turn what obstore and the file system raise into StoreUnavailable."""
    try:
        yield
    except (BaseError, OSError) as err:
        raise StoreUnavailable(type(err).__name__) from err


def _sync_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
