"""Results and claim checks in S3 or a directory: create-only writes, capped reads.

A result object is written once and never changed, and it is safe when `create` returns. Files are created by
worker.result_files. obstore reports "exists" both for S3's 412 (something is there) and its 409 (somebody is writing,
perhaps in vain), so this module looks before it says that a result is stored.

May import: the standard library, obstore, mrgc.errors, mrgc.wire, worker.result_files. Called by worker.settle, on its
asyncio loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, S3Store

from mrgc.errors import BodyMissing, ConfigError, StoreUnavailable
from mrgc.wire.strict_cbor import Buffer
from worker.result_files import NewFile, ResultFiles

#: A result of 32 MiB at 1 MiB/s.
REQUEST_TIMEOUT_S: Final = 60
CONNECT_TIMEOUT_S: Final = 5
#: obstore's own retries of one request; beyond them the intake's backoff decides.
RETRIES: Final = 2
#: Times that "exists, and yet not there" is answered by another write before it counts as an outage.
CREATE_TRIES: Final = 3
_FILE: Final = "file://"


class NewObject(NamedTuple):
    """What to create."""

    url: str
    body: Buffer


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
        self._files = ResultFiles()

    async def create(self, objects: Sequence[NewObject]) -> list[StoreUnavailable | None]:
        """Store objects unless objects of their names exist.

        Returns:
            For each, in order: None when an object of that name is safely stored, or that this is not certain.
        """
        files = [NewFile(_path(url), body) for url, body in objects if _is_file(url)]
        created = iter(await asyncio.to_thread(self._files.create, files) if files else ())
        put = iter(await asyncio.gather(*(self._put(url, body) for url, body in objects if not _is_file(url))))
        return [_unavailable(next(created)) if _is_file(each.url) else next(put) for each in objects]

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

    async def _put(self, url: str, body: Buffer) -> StoreUnavailable | None:
        store, path = self._locate(url)
        try:
            for _ in range(CREATE_TRIES):
                try:
                    await obstore.put_async(store, path, body, mode="create")
                except AlreadyExistsError:
                    if not await _exists(store, path):
                        continue
                return None
        except (BaseError, OSError) as err:
            return _unavailable(err)
        return StoreUnavailable("object exists, and yet is not there")

    def _locate(self, url: str) -> tuple[LocalStore | S3Store, str]:
        if _is_file(url):
            if self._root is None:
                self._root = LocalStore("/")
            return self._root, _path(url).lstrip("/")
        parts = urlsplit(url)
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


def _unavailable(error: Exception | None) -> StoreUnavailable | None:
    # The text of an error may hold a path or an address; its class is enough.
    return None if error is None else StoreUnavailable(type(error).__name__)


def _is_file(url: str) -> bool:
    return url.startswith(_FILE)


def _path(url: str) -> str:
    return unquote(url.removeprefix(_FILE))
