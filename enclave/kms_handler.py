"""Has KMS unwrap and make keys, which it does only for this enclave's measured image (docs/spec.md §7).

The operations are Decrypt and, for the JSON protocol, GenerateDataKey, both with a Recipient: KMS checks the
attestation document against the key's policy and answers encrypted to the document's RSA key. What comes back is
believed only as far as docs/spec.md §7 allows; in particular an answer that carries a Plaintext came from something
that ignores attestation, and is refused.

Called by `enclave.data_keys` and `enclave.bare_payloads`. May import: the standard library, boto3, botocore, enclave,
mrgc.errors, mrgc.wire.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import boto3.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from enclave import cms, kms_regions
from enclave.attestation import Attestation, Recipient
from enclave.credentials import CredentialStore, signer_session
from enclave.key_cache import WrappedKey, wipe
from enclave.kms_transport import READ_TIMEOUT_S, Dial, KmsTransport
from mrgc.errors import AuthenticationError, KeyAccessError, KeyBusyError, MrgcError
from mrgc.wire.headers import MAX_EDK_BYTES
from mrgc.wire.sealed import DATA_KEY_BYTES

if TYPE_CHECKING:
    from mypy_boto3_kms import KMSClient
    from mypy_boto3_kms.type_defs import RecipientInfoTypeDef

CALL_DEADLINE_S: Final = 6.0  #: One Decrypt with its retries; below the 10 s that a batch waits for its keys.
_ATTEMPTS: Final = 3
_ALGORITHM: Final = "SYMMETRIC_DEFAULT"

#: docs/spec.md §7. The wrapped key is not one of this key and context: as good as a forged tag.
_AUTH_CODES: Final = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})
#: docs/spec.md §7: throttling, and credentials or signatures that are the fleet's fault and never the job's. A status
#: of 500 and above counts as these.
_BUSY_CODES: Final = frozenset(
    {
        "DependencyTimeoutException",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "IncompleteSignatureException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "KMSInternalException",
        "KeyUnavailableException",
        "LimitExceededException",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "RequestExpired",
        "RequestLimitExceeded",
        "SignatureDoesNotMatch",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        "UnrecognizedClientException",
    }
)


class MadeKey(NamedTuple):
    """A data key that KMS has just made."""

    edk: bytes
    #: 32 bytes, in a buffer that its owner zeroes.
    plaintext: bytearray

    def __repr__(self) -> str:
        return f"MadeKey(edk of {len(self.edk)} bytes)"


class KmsHandler:
    """Calls KMS in the region of each key.

    Args:
        attestation: gives documents, each with the RSA key that answers to it are encrypted to.
        credentials: what requests are signed with.
        dial: opens a stream towards a KMS host.
        ca_file: PEM roots that may vouch for KMS.
    """

    def __init__(self, attestation: Attestation, credentials: CredentialStore, *, dial: Dial, ca_file: str) -> None:
        self._attestation = attestation
        self._credentials = credentials
        self._transport = KmsTransport(dial, ca_file)
        self._lock = threading.Lock()
        self._clients: dict[kms_regions.Endpoint, KMSClient] = {}
        self._has_answered = True

    @property
    def is_ready(self) -> bool:
        """Whether unexpired credentials are held and the last call, if there was one, got an answer."""
        return self._has_answered and self._credentials.are_valid(self._attestation.clock.now_s())

    def unwrap(self, wrapped: WrappedKey) -> bytearray:
        """Have KMS unwrap a data key for this enclave.

        Returns:
            32 bytes, in a buffer that its owner zeroes.

        Raises:
            AuthenticationError: KMS does not know the wrapped key under this ARN and context, or its answer is not
                what docs/spec.md §7 accepts.
            KeyAccessError: KMS refuses the key.
            KeyBusyError: no answer now; never the job's fault.
        """
        key = self.decrypt(wrapped)
        if len(key) != DATA_KEY_BYTES:
            wipe(key)
            raise AuthenticationError
        return key

    def decrypt(self, wrapped: WrappedKey) -> bytearray:
        """Have KMS decrypt a ciphertext of any plaintext length.

        A multi-Region key whose own region gives no answer is asked for again in the region of this enclave.

        Returns:
            1..4,096 bytes, in a buffer that its owner zeroes.

        Raises:
            AuthenticationError, KeyAccessError, KeyBusyError: as `unwrap`.
        """
        replica = kms_regions.replica(wrapped.key_arn, self._attestation.region)
        if replica is None:
            return self._decrypt(wrapped, wrapped.key_arn, limit_s=CALL_DEADLINE_S)
        try:
            return self._decrypt(wrapped, wrapped.key_arn, limit_s=CALL_DEADLINE_S / 2)
        except KeyBusyError:
            # There may be no such replica, and its policy is its own: only a key counts. A refusal is the key's that
            # the job names, and that one has not answered.
            with suppress(MrgcError):
                return self._decrypt(wrapped, replica, limit_s=CALL_DEADLINE_S / 2)
            raise

    def _decrypt(self, wrapped: WrappedKey, key_arn: str, *, limit_s: float) -> bytearray:
        recipient = self._attestation.recipient()
        answer = self._call(
            key_arn,
            lambda kms: kms.decrypt(
                KeyId=key_arn,
                CiphertextBlob=wrapped.edk,
                EncryptionContext=dict(wrapped.context),
                EncryptionAlgorithm=_ALGORITHM,
                Recipient=_shown(recipient),
            ),
            limit_s=limit_s,
        )
        if answer.get("EncryptionAlgorithm") != _ALGORITHM:
            raise AuthenticationError
        return _open(answer, key_arn, recipient)

    def make_key(self, key_arn: str, context: dict[str, str]) -> MadeKey:
        """Have KMS make a data key for this enclave.

        Raises:
            AuthenticationError, KeyAccessError, KeyBusyError: as `unwrap`.
        """
        recipient = self._attestation.recipient()
        answer = self._call(
            key_arn,
            lambda kms: kms.generate_data_key(
                KeyId=key_arn, KeySpec="AES_256", EncryptionContext=context, Recipient=_shown(recipient)
            ),
            limit_s=CALL_DEADLINE_S,
        )
        edk = answer.get("CiphertextBlob")
        if type(edk) is not bytes or not 1 <= len(edk) <= MAX_EDK_BYTES:
            raise AuthenticationError
        key = _open(answer, key_arn, recipient)
        if len(key) != DATA_KEY_BYTES:
            wipe(key)
            raise AuthenticationError
        return MadeKey(edk, key)

    def close(self) -> None:
        """Close the idle connections."""
        self._transport.close()

    def _call(
        self, key_arn: str, ask: Callable[[KMSClient], Mapping[str, Any]], *, limit_s: float
    ) -> Mapping[str, Any]:
        where = kms_regions.endpoint(key_arn)
        if not self._credentials.are_valid(self._attestation.clock.now_s()):
            raise KeyBusyError("no unexpired credentials are held")
        client = self._client(where)
        try:
            with self._transport.deadline(limit_s):
                answer = ask(client)
        except (BotoCoreError, ClientError) as error:
            self._has_answered = isinstance(error, ClientError)
            raise kms_error(error) from error
        except (AttributeError, RecursionError, TypeError, ValueError):
            # What botocore's parser raises for a whole answer that is not of KMS's shape at all.
            raise AuthenticationError from None
        self._has_answered = True
        return answer

    def _client(self, where: kms_regions.Endpoint) -> KMSClient:
        with self._lock:
            client = self._clients.get(where)
            if client is None:
                client = self._clients[where] = self._make_client(where)
            return client

    def _make_client(self, where: kms_regions.Endpoint) -> KMSClient:
        options: dict[str, Any] = {
            "ignore_configured_endpoint_urls": True,
            "read_timeout": READ_TIMEOUT_S,
            "retries": {"mode": "standard", "total_max_attempts": _ATTEMPTS},
        }
        session = boto3.session.Session(botocore_session=signer_session(self._credentials), region_name=where.region)
        client: KMSClient = session.client("kms", endpoint_url=f"https://{where.host}", config=Config(**options))
        send: Any = self._transport.sender(where.host)
        client.meta.events.register("before-send.kms", send, unique_id="mrgc-kms-transport")
        return client


def _shown(recipient: Recipient) -> RecipientInfoTypeDef:
    return {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": recipient.document}


def _open(answer: Mapping[str, Any], key_arn: str, recipient: Recipient) -> bytearray:
    # An empty answer is what botocore makes of a body that is not JSON: absence never counts as success.
    sealed_to_us = answer.get("CiphertextForRecipient")
    if type(sealed_to_us) is not bytes or answer.get("Plaintext") or answer.get("KeyId") != key_arn:
        raise AuthenticationError
    return cms.open_enveloped(sealed_to_us, private_key=recipient.private_key)


def kms_error(error: BotoCoreError | ClientError) -> MrgcError:
    """Map what a KMS call raised to what its jobs are answered with: the one such table (docs/spec.md §7)."""
    if isinstance(error, BotoCoreError):
        # No answer: transport, deadline, a peer that is not KMS, or nothing to sign with.
        return KeyBusyError("kms gave no answer")
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _AUTH_CODES:
        return AuthenticationError()
    if code in _BUSY_CODES or status >= 500:
        return KeyBusyError("kms cannot answer now")
    return KeyAccessError("kms refuses the key")
