"""Requests of the JSON protocol between their decrypt and their encrypt: pure policy (docs/spec.md §8).

Time is an argument, there is no lock and no I/O; `enclave.json_protocol` owns both.

Called by `enclave.json_protocol`. May import: the standard library, mrgc.errors.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final, NamedTuple

from mrgc.errors import DuplicateRequest, EnclaveBusy, FormatError, UnknownRequest

MAX_REQUESTS: Final = 4_096  #: docs/spec.md §8; with AADs of 16 KiB each, 64 MiB.
MAX_PER_TENANT: Final = 512  #: docs/spec.md §8.
LIFETIME_S: Final = 900.0  #: docs/spec.md §8, and the life of a ticket.


class OpenedJob(NamedTuple):
    """A sealed job that was decrypted: what sealing its result needs."""

    key_arn: str
    request: bytes
    ticket: bytes
    aad: bytes


class OpenedPayload(NamedTuple):
    """A bare ciphertext that was decrypted: for whom, and under which key."""

    key_arn: str
    tenant: str


Origin = OpenedJob | OpenedPayload


@dataclass(slots=True)
class _Entry:
    tenant: str
    until_s: float
    #: None while its decrypt is under way.
    origin: Origin | None = None


class PendingRequests:
    """Bounded, expiring request ids; each lives from its decrypt to its encrypt."""

    def __init__(self) -> None:
        # All live equally long, so the order of arrival is the order of expiry.
        self._entries: dict[str, _Entry] = {}
        self._per_tenant: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    def reserve(self, request_id: str, tenant: str, *, now_s: float) -> None:
        """Take a request id before anything is decrypted under it; `fill` or `release` follows.

        Args:
            request_id: as the caller names its request.
            tenant: owner of the quota.
            now_s: monotonic seconds.

        Raises:
            DuplicateRequest: the id is taken.
            EnclaveBusy: the tenant, or all together, have too many.
        """
        self._expire(now_s)
        if request_id in self._entries:
            raise DuplicateRequest("request_id is pending")
        if len(self._entries) >= MAX_REQUESTS or self._per_tenant[tenant] >= MAX_PER_TENANT:
            raise EnclaveBusy("too many requests are pending")
        self._entries[request_id] = _Entry(tenant, now_s + LIFETIME_S)
        self._per_tenant[tenant] += 1

    def fill(self, request_id: str, origin: Origin) -> None:
        """Note what was decrypted under a reserved id: from now on its encrypt is awaited."""
        self._entries[request_id].origin = origin

    def release(self, request_id: str) -> None:
        """Give a reserved id back: nothing was decrypted under it."""
        self._drop(request_id)

    def take(self, request_id: str, key_arn: str, *, now_s: float) -> Origin:
        """Consume a request.

        Raises:
            UnknownRequest: nothing was decrypted under the id, or too long ago, or it was encrypted already.
            FormatError: it was decrypted under another key; it stays pending.
        """
        self._expire(now_s)
        entry = self._entries.get(request_id)
        if entry is None or entry.origin is None:
            raise UnknownRequest("nothing was decrypted under this request_id")
        if entry.origin.key_arn != key_arn:
            raise FormatError("kms_key_arn is not that of the request")
        self._drop(request_id)
        return entry.origin

    def _expire(self, now_s: float) -> None:
        while self._entries:
            oldest, entry = next(iter(self._entries.items()))
            if now_s < entry.until_s:
                return
            self._drop(oldest)

    def _drop(self, request_id: str) -> None:
        tenant = self._entries.pop(request_id).tenant
        self._per_tenant[tenant] -= 1
        if not self._per_tenant[tenant]:
            del self._per_tenant[tenant]
