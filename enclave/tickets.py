"""Tickets: proof that a job was opened by this boot of this enclave (docs/spec.md §6).

A ticket is `deadline (u64) ‖ HMAC-SHA256(boot key, …)` over everything that sealing relies on, so `seal_batch` needs
no memory of what `open_batch` did, and a restarted enclave refuses what it did not open itself.

Called by `enclave.operations`. May import: the standard library, mrgc.errors, mrgc.wire.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from mrgc.errors import TicketError
from mrgc.wire.strict_cbor import Buffer

LIFETIME_S: Final = 900  #: docs/spec.md §6: deadline = opening + 900 s.

_DEADLINE: Final = struct.Struct(">Q")
_LABEL: Final = b"mrgc/1/ticket\x00"
_BOOT_KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Opening:
    """How a job was opened: the trust tier, and at tiers 1 and 2 the session (16 bytes) and the host (32 bytes)."""

    tier: int
    session: bytes
    host: bytes
    #: As the ticket's MAC reads it.
    encoded: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoded", self.tier.to_bytes(1, "big") + self.session + self.host)


#: The open parent: no session, no measured host (docs/spec.md §6, "absent = zeros").
OPEN_PARENT: Final = Opening(tier=0, session=bytes(16), host=bytes(32))


class Tickets:
    """Issues and checks the tickets of one boot."""

    def __init__(self) -> None:
        self._boot_mac = HMAC(os.urandom(_BOOT_KEY_BYTES), SHA256())
        self._boot_mac.update(_LABEL)

    def issue(self, opening: Opening, *, request: bytes, aad: Buffer, now_s: float) -> bytes:
        """Make the ticket of a job that passed every check of docs/spec.md §2.

        Args:
            opening: how it was opened.
            request: SHA-256 of the whole sealed job.
            aad: the job's first 12+H bytes.
            now_s: the enclave's clock.

        Returns:
            40 bytes.
        """
        deadline = _DEADLINE.pack(int(now_s) + LIFETIME_S)
        return deadline + self._mac(deadline, opening, request, aad)

    def ensure_valid(self, ticket: bytes, opening: Opening, *, request: bytes, aad: Buffer, now_s: float) -> None:
        """Check a ticket; afterwards `request` and `aad` are known to belong to a job opened in this boot.

        Raises:
            TicketError: made by another boot, for another job or opening, or too old.
        """
        deadline, mac = ticket[: _DEADLINE.size], ticket[_DEADLINE.size :]
        if not hmac.compare_digest(mac, self._mac(deadline, opening, request, aad)):
            raise TicketError("ticket is not of this boot")
        if now_s >= _DEADLINE.unpack(deadline)[0]:
            raise TicketError("ticket is too old")

    def _mac(self, deadline: bytes, opening: Opening, request: bytes, aad: Buffer) -> bytes:
        # A copy of the MAC that has read the label: the key is set up once for the boot, not for every job.
        mac = self._boot_mac.copy()
        mac.update(deadline + opening.encoded + request + hashlib.sha256(aad).digest())
        return mac.finalize()
