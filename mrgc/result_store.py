"""The tenant's side of the object store: read results and hints, and upload long jobs as claim checks.

S3 or a directory, through obstore. It never lists and never deletes. The intake has a store of its own
(`worker.object_store`), with the opposite rights: it writes results, this one only reads them.

Called by `mrgc.client`. May import: obstore, the standard library, mrgc.errors, mrgc.tenant_kms, mrgc.client_settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import obstore
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError
from obstore.store import LocalStore, S3Store

from mrgc.client_settings import AwsAccess
from mrgc.errors import ConfigError, StoreUnavailable
from mrgc.tenant_kms import session

#: Objects read at once; with their cap of 33.6 MB this bounds what a fetch holds in memory.
CONCURRENT_READS: Final = 8
#: Beside the results, in a place that no tenant's name can spell: `_` starts none (docs/spec.md §2).
_UPLOADS: Final = "_jobs"
_RETRY_TIMEOUT: Final = timedelta(seconds=30)


class ResultStore:
    """Objects below MRGC_RESULTS_URL.

    Args:
        url: file:///directory/ or s3://bucket/prefix/.
        aws: credentials and endpoint for s3://.

    Raises:
        ConfigError: the URL is missing or malformed, the directory does not exist, or there are no credentials.
    """

    def __init__(self, url: str, aws: AwsAccess) -> None:
        parts = urlsplit(url)
        #: s3://bucket/prefix/ under which long jobs are uploaded; None where docs/spec.md §5 has no claim checks.
        self._upload_base: str | None = None
        self._store: LocalStore | S3Store
        if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
            self._store = _directory(Path(unquote(parts.path)))
        elif parts.scheme == "s3" and parts.netloc:
            self._store = _bucket(parts.netloc, parts.path.strip("/"), aws)
            self._upload_base = "/".join(part for part in ("s3:/", parts.netloc, parts.path.strip("/")) if part)
        else:
            raise ConfigError("MRGC_RESULTS_URL is missing or malformed: file:///directory/ or s3://bucket/prefix/")
        self._readers = ThreadPoolExecutor(CONCURRENT_READS, thread_name_prefix="mrgc-read")

    @property
    def takes_uploads(self) -> bool:
        """Whether long jobs can travel as claim checks."""
        return self._upload_base is not None

    def read(self, names: Sequence[str], *, max_bytes: int) -> list[bytes | None]:
        """Read objects, several at once.

        Args:
            names: below the prefix.
            max_bytes: cap of one object, checked before its body is read.

        Returns:
            Their bytes in the order of `names`; None for an object that does not exist, and no bytes at all for one
            over the cap, which so fails its reader's first check alone instead of failing the others with it.

        Raises:
            StoreUnavailable: the store does not answer or refuses.
            ConfigError: there is no such bucket.
        """
        return list(self._readers.map(lambda name: self._read_one(name, max_bytes), names))

    def upload(self, tenant: str, request_hex: str, sealed_job: bytes) -> str:
        """Store a long sealed job under its own hash; storing it twice is the same as once.

        Returns:
            Its s3:// URL, for the claim check.

        Raises:
            StoreUnavailable: the store did not take it.
        """
        name = f"{_UPLOADS}/{tenant}/{request_hex}.mrgc"
        try:
            obstore.put(self._store, name, sealed_job, mode="create")
        except AlreadyExistsError:
            pass  # the name is the hash of the content, and the intake checks it
        except (BaseError, OSError) as error:
            raise _unavailable(error) from error
        return f"{self._upload_base}/{name}"

    def close(self) -> None:
        """End the reading threads."""
        self._readers.shutdown()

    def _read_one(self, name: str, max_bytes: int) -> bytes | None:
        try:
            answer = obstore.get(self._store, name)
            return bytes(answer.bytes()) if answer.meta["size"] <= max_bytes else b""
        except FileNotFoundError as error:
            # obstore tells no missing bucket from a missing object; S3's own code in its text does.
            if "NoSuchBucket" in str(error):
                raise ConfigError("the bucket of MRGC_RESULTS_URL does not exist") from error
            return None
        except (BaseError, OSError) as error:
            raise _unavailable(error) from error


def _directory(path: Path) -> LocalStore:
    try:
        return LocalStore(path)
    except BaseError:
        raise ConfigError(f"MRGC_RESULTS_URL names no directory: {path}") from None


def _bucket(bucket: str, prefix: str, aws: AwsAccess) -> S3Store:
    chosen = session(aws, region=aws.region)
    try:
        credentials = Boto3CredentialProvider(chosen)
    except ValueError:
        raise ConfigError("no aws credentials for the bucket of MRGC_RESULTS_URL") from None
    try:
        return S3Store(
            bucket,
            prefix=prefix or None,
            region=chosen.region_name,
            endpoint=aws.s3_endpoint,
            credential_provider=credentials,
            # http only where the configured endpoint says http: obstore refuses it otherwise.
            client_options={
                "timeout": "60s",
                "connect_timeout": "5s",
                "allow_http": (aws.s3_endpoint or "").startswith("http://"),
            },
            retry_config={"max_retries": 5, "retry_timeout": _RETRY_TIMEOUT},
        )
    except BaseError as error:
        raise ConfigError(f"MRGC_RESULTS_URL is unusable: {type(error).__name__}") from error


def _unavailable(error: Exception) -> StoreUnavailable:
    if isinstance(error, PermissionDeniedError):
        # Amazon S3 API Reference, "GetObject": without s3:ListBucket a missing object is 403, not 404.
        return StoreUnavailable("object store denies access: results need s3:GetObject, and s3:ListBucket to be missed")
    return StoreUnavailable(f"object store does not answer: {type(error).__name__}")
