"""Which data keys the enclave keeps, for how long and for whom: pure policy (docs/spec.md §7).

Time is an argument, there is no lock and no I/O; `enclave.data_keys` owns both. Keys live in buffers that are zeroed
when they leave. What goes out is a copy, zeroed by its borrower, so that an eviction never changes a key under a
thread that is sealing with it.

Called by `enclave.data_keys`. May import: the standard library, mrgc.wire.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mrgc.wire import strict_cbor

MAX_AGE_S: Final = 300.0  #: docs/spec.md §7, since the KMS answer: the enclave's share of the revocation latency.
MAX_USES: Final = 1 << 21  #: docs/spec.md §7: an open and a seal for each of an epoch's 2^20 jobs.
REFUSAL_AGE_S: Final = 30.0  #: docs/spec.md §7, key_access.
MAX_PER_TENANT: Final = 256  #: Keys of one tenant: an epoch's, those of its late jobs and of its parallel clients.
MAX_ENTRIES: Final = 32_768  #: Keys and refusals of all tenants; about 15 MiB.

_ZEROS: Final = memoryview(bytes(64 << 10))


class WrappedKey(NamedTuple):
    """A data key as a job names it: all that KMS needs to unwrap it."""

    tenant: str
    key_arn: str
    edk: bytes
    #: Encryption context, sorted pairs.
    context: tuple[tuple[str, str], ...]

    def identity(self) -> bytes:
        """Return SHA-256(CBOR [key_arn, context, edk]), the cache identity of docs/spec.md §7."""
        return hashlib.sha256(strict_cbor.encode([self.key_arn, dict(self.context), self.edk])).digest()


@dataclass(slots=True)
class _Entry:
    """A key, or the memory that KMS refused it (`key` is None)."""

    until_s: float
    key: bytearray | None = field(repr=False)
    uses: int = 0


class Refused:
    """What `take` returns while KMS's refusal is remembered."""


REFUSED: Final = Refused()


class KeyCache:
    """Bounded, expiring data keys.

    A tenant at its quota loses its own least recently used entry. When the whole cache is full, the newcomer is not
    kept: a tenant never evicts another's key, whatever it does.
    """

    def __init__(self) -> None:
        self._tenants: dict[str, OrderedDict[bytes, _Entry]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def take(self, tenant: str, identity: bytes, *, uses: int, now_s: float) -> bytearray | Refused | None:
        """Look a key up.

        Args:
            tenant: owner of the quota.
            identity: `WrappedKey.identity()`.
            uses: how many jobs will be opened or sealed with it.
            now_s: monotonic seconds.

        Returns:
            A copy that the caller zeroes; REFUSED while a refusal is remembered; None: ask KMS.
        """
        shelf = self._tenants.get(tenant, OrderedDict())
        entry = shelf.get(identity)
        if entry is None:
            return None
        if now_s >= entry.until_s or entry.uses + uses > MAX_USES:
            self._drop(tenant, identity)
            return None
        if entry.key is None:
            return REFUSED
        entry.uses += uses
        shelf.move_to_end(identity)
        return bytearray(entry.key)

    def put(self, tenant: str, identity: bytes, key: bytearray, *, uses: int, answered_s: float) -> None:
        """Keep a copy of a key that KMS has just released, with the uses already handed out."""
        if uses <= MAX_USES:
            self._keep(tenant, identity, _Entry(answered_s + MAX_AGE_S, bytearray(key), uses))

    def refuse(self, tenant: str, identity: bytes, *, answered_s: float) -> None:
        """Remember that KMS refused a key."""
        self._keep(tenant, identity, _Entry(answered_s + REFUSAL_AGE_S, None))

    def sweep(self, now_s: float) -> None:
        """Drop and zero everything that is too old, so that no key outlives its age for want of traffic."""
        for tenant in list(self._tenants):
            for identity, entry in list(self._tenants[tenant].items()):
                if now_s >= entry.until_s:
                    self._drop(tenant, identity)

    def clear(self) -> None:
        """Drop and zero everything."""
        self.sweep(float("inf"))

    def _keep(self, tenant: str, identity: bytes, entry: _Entry) -> None:
        self._drop(tenant, identity)
        if len(self._tenants.get(tenant, ())) >= MAX_PER_TENANT:
            self._drop(tenant, next(iter(self._tenants[tenant])))
        if self._count >= MAX_ENTRIES:
            _zero(entry)
            return
        self._tenants.setdefault(tenant, OrderedDict())[identity] = entry
        self._count += 1

    def _drop(self, tenant: str, identity: bytes) -> None:
        shelf = self._tenants.get(tenant)
        entry = shelf.pop(identity, None) if shelf is not None else None
        if entry is None:
            return
        _zero(entry)
        self._count -= 1
        if not shelf:
            del self._tenants[tenant]


def wipe(secret: bytearray) -> None:
    """Overwrite a secret in place."""
    view = memoryview(secret)
    if len(view) <= len(_ZEROS):
        view[:] = _ZEROS[: len(view)]
        return
    # From one buffer of zeros: to make a second one of the secret's length costs more than to overwrite it.
    for start in range(0, len(view), len(_ZEROS)):
        piece = view[start : start + len(_ZEROS)]
        piece[:] = _ZEROS[: len(piece)]


def _zero(entry: _Entry) -> None:
    if entry.key is not None:
        wipe(entry.key)
