"""Bare ciphertexts of the JSON protocol, and the standalone objects that answer them (docs/spec.md §8).

Nothing but TLS to KMS protects these: there is no header, no commitment and no expiry. What keeps data keys out of
reach is the encryption context, which here is always one that no data key of a job has.

Called by `enclave.json_protocol`. May import: the standard library, enclave, mrgc.errors, mrgc.wire.
"""

from __future__ import annotations

from typing import Final

from enclave.attestation import Clock
from enclave.key_cache import WrappedKey, wipe
from enclave.kms_calls import KmsCalls
from enclave.kms_handler import KmsHandler, MadeKey
from enclave.pending import OpenedPayload
from mrgc.errors import TooLargeError
from mrgc.wire.headers import MAX_EDK_BYTES, USE_PAYLOAD
from mrgc.wire.sealed import StandaloneDraft, seal_standalone, standalone_context
from mrgc.wire.strict_cbor import Buffer

MAX_CIPHERTEXT_BYTES: Final = MAX_EDK_BYTES  #: docs/spec.md §8: both are CiphertextBlobs of KMS.


class BarePayloads:
    """Decrypts and seals with one call to KMS each.

    Args:
        kms: talks to KMS.
        calls: makes the calls, within each tenant's budget.
        clock: the enclave's own.
    """

    def __init__(self, kms: KmsHandler, calls: KmsCalls, clock: Clock) -> None:
        self._kms = kms
        self._calls = calls
        self._clock = clock

    def decrypt(self, ciphertext: Buffer, *, tenant: str, key_arn: str) -> bytearray:
        """Have KMS decrypt a ciphertext that was made for tier 0 and this protocol.

        Returns:
            1..4,096 bytes in a buffer that its owner zeroes.

        Raises:
            TooLargeError: longer than any CiphertextBlob.
            AuthenticationError, KeyAccessError, KeyBusyError: as docs/spec.md §7 has it.
        """
        if len(ciphertext) > MAX_CIPHERTEXT_BYTES:
            raise TooLargeError("ciphertext is longer than any of kms")
        context = (("mrgc:use", USE_PAYLOAD), ("mrgc:tenant", tenant))
        wrapped = WrappedKey(tenant, key_arn, bytes(ciphertext), context)
        return self._calls.ask(tenant, lambda: self._kms.decrypt(wrapped), discard=wipe)

    def seal(self, body: Buffer, origin: OpenedPayload, *, request_id: str) -> bytes:
        """Seal an answer as a standalone object, under a data key that KMS makes for it.

        Raises:
            AuthenticationError, KeyAccessError, KeyBusyError: as docs/spec.md §7 has it.
        """
        tenant, key_arn = origin.tenant, origin.key_arn
        context = standalone_context(tenant)
        made = self._calls.ask(tenant, lambda: self._kms.make_key(key_arn, context), discard=_wipe_made)
        draft = StandaloneDraft(tenant, key_arn, made.edk, request_id, created=int(self._clock.now_s()))
        try:
            return seal_standalone(draft, body, data_key=made.plaintext)
        finally:
            wipe(made.plaintext)


def _wipe_made(made: MadeKey) -> None:
    wipe(made.plaintext)
