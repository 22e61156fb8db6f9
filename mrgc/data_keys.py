"""The tenant's data keys in memory: one per epoch for sealing, a bounded cache for opening.

An epoch lasts 10 minutes or 2^20 jobs, so KMS sees two calls per epoch (GenerateDataKey here, Decrypt when results
are opened) however many jobs there are. Plain keys live in bytearrays that are zeroed when their epoch ends, when
the cache drops them, and on close. (boto3 hands a key over as immutable bytes; that copy goes when Python frees it.)

Called by `mrgc.client`. May import: the standard library, mrgc.tenant_kms.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from mrgc.tenant_kms import TenantKms
from mrgc.wire.headers import USE_JOB

EPOCH_S: Final = 600  #: One data key seals for at most this long: what one lost key can expose.
EPOCH_JOBS: Final = 1 << 20  #: docs/spec.md §7: the enclave allows 2^21 uses, an open and a seal per job.
MAX_OPENING_KEYS: Final = 64  #: Data keys kept for opening: over ten hours of epochs.


@dataclass(slots=True)
class Epoch:
    """One data key in use for sealing, and the rule for when it must go. No I/O; time is passed in."""

    edk: bytes
    data_key: bytearray = field(repr=False)
    #: Monotonic seconds.
    ends_s: float
    jobs_left: int = EPOCH_JOBS

    def is_over(self, now_s: float) -> bool:
        """Tell whether the next job needs a new key."""
        return self.jobs_left <= 0 or now_s >= self.ends_s


class DataKeys:
    """Every plain data key that this process holds for one tenant.

    Args:
        kms: where keys come from.
        tenant: goes into the encryption context of every key.
        clock: monotonic seconds.
    """

    def __init__(self, kms: TenantKms, *, tenant: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._kms = kms
        self._clock = clock
        self._epoch: Epoch | None = None
        self._opening: OrderedDict[bytes, bytearray] = OrderedDict()
        #: The KMS encryption context of every job (docs/spec.md §2).
        self.context: Mapping[str, str] = {"mrgc:tenant": tenant, "mrgc:use": USE_JOB}

    def for_sealing(self) -> Epoch:
        """Return the current epoch, begun anew if the last one is over, and count one job against it.

        Raises:
            KeyAccessError, KeyBusyError, ConfigError: see `TenantKms.generate`.
        """
        now_s = self._clock()
        epoch = self._epoch
        if epoch is None or epoch.is_over(now_s):
            self._end_epoch()
            wrapped = self._kms.generate(self.context)
            epoch = self._epoch = Epoch(wrapped.edk, wrapped.data_key, now_s + EPOCH_S)
        epoch.jobs_left -= 1
        return epoch

    def for_opening(self, edk: bytes) -> bytearray:
        """Return the data key behind `edk`; valid until the next call.

        Raises:
            AuthenticationError, KeyAccessError, KeyBusyError, ConfigError: see `TenantKms.decrypt`.
        """
        data_key = self._opening.get(edk)
        if data_key is None:
            data_key = self._opening[edk] = self._kms.decrypt(edk, self.context)
            while len(self._opening) > MAX_OPENING_KEYS:
                _zero(self._opening.popitem(last=False)[1])
        self._opening.move_to_end(edk)
        return data_key

    def close(self) -> None:
        """Zero every key."""
        self._end_epoch()
        while self._opening:
            _zero(self._opening.popitem()[1])

    def _end_epoch(self) -> None:
        if self._epoch is not None:
            _zero(self._epoch.data_key)
            self._epoch = None


def _zero(data_key: bytearray) -> None:
    data_key[:] = bytes(len(data_key))
