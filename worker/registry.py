"""The tenants that this host serves: queue, weight, quota, keys, models and where results may go.

`tenants.toml` is the authority for admission. It is read again when it changes; a file that became wrong is logged by
the caller and the last good one stays in force, so that an editor's slip stops no tenant.

May import: the standard library, mrgc.errors, mrgc.wire. Called by the intake and the tasks.
"""

from __future__ import annotations

import re
import threading
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mrgc.errors import ConfigError
from mrgc.wire.headers import KEY_ARN, TENANT

#: A registry of a thousand tenants is below this; a larger file is a mistake.
MAX_FILE_BYTES: Final = 4 << 20
MAX_WEIGHT: Final = 1_000
MAX_QUOTA: Final = 1 << 20

_MODEL_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._/-]{0,62}")
_RESULTS: Final = re.compile(r"file:///(.*/)?|s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/(.*/)?")
_S3_PREFIX: Final = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/(.*/)?")
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_S3_BUCKET: Final = re.compile(r"s3://([^/]+)/")


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant's entry."""

    name: str
    #: Share of the GPU against other tenants that have work.
    weight: int
    key_arns: frozenset[str]
    #: Model names, without digest.
    models: frozenset[str]
    #: Prefix of result objects; None is the host's default.
    results: str | None
    #: s3:// prefixes that a job header's `result` may name.
    allowed_results: tuple[str, ...]
    #: Buckets, beside that of `results`, that a claim check may name (docs/spec.md §5).
    claim_buckets: frozenset[str]
    #: Jobs of this tenant that the host holds at once.
    max_inflight_jobs: int
    #: Whether its texts go through no forward pass together with another tenant's.
    exclusive: bool = False

    def allows_result(self, target: str) -> bool:
        """Return whether a job header may send its result to `target` (docs/spec.md §2, `result`)."""
        return any(target.startswith(prefix) for prefix in self.allowed_results)


class Registry:
    """The current entries of one file. Safe to share between threads.

    Args:
        path: tenants.toml.

    Raises:
        ConfigError: the file is absent or malformed at the first read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp = self._read_stamp()
        self._tenants = self._load()
        self._quotas = _quotas(self._tenants)

    @property
    def tenants(self) -> Mapping[str, Tenant]:
        """All entries by tenant."""
        return self._tenants

    @property
    def quotas(self) -> Mapping[str, int]:
        """The most jobs to hold at once, by tenant."""
        return self._quotas

    def get(self, tenant: str) -> Tenant | None:
        """Return one tenant's entry."""
        return self._tenants.get(tenant)

    def refresh(self) -> bool:
        """Read the file again if it changed.

        Returns:
            Whether new entries are in force.

        Raises:
            ConfigError: the changed file is absent or malformed; raised once per change, the old entries stay.
        """
        with self._lock:
            stamp = self._read_stamp()
            if stamp == self._stamp:
                return False
            self._stamp = stamp
            self._tenants = self._load()
            self._quotas = _quotas(self._tenants)
            return True

    def _read_stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        # The inode tells an atomic replacement apart from the file before it, even within one clock tick.
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _load(self) -> Mapping[str, Tenant]:
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
            if len(data) > MAX_FILE_BYTES:
                raise ConfigError("registry is over 4 MiB")
            return parse_registry(data.decode())
        except (OSError, UnicodeDecodeError) as err:
            raise ConfigError("registry cannot be read") from err


def parse_registry(text: str) -> Mapping[str, Tenant]:
    """Parse a registry file.

    Raises:
        ConfigError: not TOML, an unknown key, or a value that breaks its rule; names the tenant and the key.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise ConfigError("registry is not toml") from err
    tables = document.pop("tenants", {})
    if document or not isinstance(tables, dict):
        raise ConfigError("registry has a key other than [tenants.*]")
    return {name: _parse_tenant(name, table) for name, table in tables.items()}


def _quotas(tenants: Mapping[str, Tenant]) -> Mapping[str, int]:
    return {name: tenant.max_inflight_jobs for name, tenant in tenants.items()}


def bucket_of(url: str) -> str | None:
    """Return the bucket of an s3:// URL; None for any other URL."""
    match = _S3_BUCKET.match(url)
    return match[1] if match else None


def _parse_tenant(name: str, table: Any) -> Tenant:
    if not TENANT.fullmatch(name) or not isinstance(table, dict):
        raise ConfigError(f"registry has a malformed tenant {name!r}")
    fields = dict(table)
    results = fields.pop("results", None)
    _ensure(results is None or _fits(_RESULTS, results), name, "results")
    tenant = Tenant(
        name=name,
        weight=_integer(fields, "weight", within=(1, MAX_WEIGHT), default=1, tenant=name),
        key_arns=frozenset(_texts(fields, "key_arns", KEY_ARN, tenant=name)),
        models=frozenset(_texts(fields, "models", _MODEL_NAME, tenant=name)),
        results=results,
        allowed_results=tuple(_texts(fields, "allowed_results", _S3_PREFIX, tenant=name)),
        claim_buckets=frozenset(_texts(fields, "claim_buckets", _BUCKET, tenant=name)),
        max_inflight_jobs=_integer(fields, "max_inflight_jobs", within=(1, MAX_QUOTA), default=4_096, tenant=name),
        exclusive=_flag(fields, "exclusive", tenant=name),
    )
    _ensure(not fields, name, ", ".join(sorted(fields)))
    return tenant


def _texts(fields: dict[str, Any], key: str, pattern: re.Pattern[str], *, tenant: str) -> list[str]:
    values = fields.pop(key, [])
    _ensure(isinstance(values, list) and all(_fits(pattern, value) for value in values), tenant, key)
    return list(values)


def _integer(fields: dict[str, Any], key: str, *, within: tuple[int, int], default: int, tenant: str) -> int:
    value = fields.pop(key, default)
    _ensure(type(value) is int and within[0] <= value <= within[1], tenant, key)
    return int(value)


def _flag(fields: dict[str, Any], key: str, *, tenant: str) -> bool:
    value = fields.pop(key, False)
    _ensure(type(value) is bool, tenant, key)
    return bool(value)


def _fits(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _ensure(holds: bool, tenant: str, key: str) -> None:
    if not holds:
        raise ConfigError(f"registry entry of {tenant} is malformed at {key}")
