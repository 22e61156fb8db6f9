"""The tenant's own calls to AWS KMS: make a data key, unwrap one, read the key's policy and grants.

Unattested, by the tenant's principal. Used by `mrgc.data_keys` and `mrgc.cli_policy` alone. The enclave has a KMS
client of its own (attested Decrypt, TLS over vsock); the two share nothing, because they trust different things.

May import: boto3, botocore, mrgc.errors, mrgc.wire, mrgc.client_settings, mrgc.policy_review.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)

from mrgc.client_settings import AwsAccess
from mrgc.errors import AuthenticationError, ConfigError, KeyAccessError, KeyBusyError, MrgcError
from mrgc.policy_review import Grant
from mrgc.wire.headers import KEY_ARN, MAX_EDK_BYTES
from mrgc.wire.sealed import DATA_KEY_BYTES

if TYPE_CHECKING:
    from mypy_boto3_kms import KMSClient

#: botocore's standard mode backs off with jitter between attempts.
_CONFIG: Final = Config(connect_timeout=5, read_timeout=10, retries={"mode": "standard", "max_attempts": 4})

#: AWS KMS API Reference, "Decrypt" and "GenerateDataKey", Errors: worth another try later.
_BUSY_CODES: Final = frozenset(
    {"ThrottlingException", "LimitExceededException", "DependencyTimeoutException", "KeyUnavailableException",
     "KMSInternalException", "RequestLimitExceeded", "ServiceUnavailable", "InternalFailure"}
)  # fmt: skip
#: The wrapped key, its context or its KMS key does not belong to the others.
_WRONG_KEY_CODES: Final = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})


class WrappedKey(NamedTuple):
    """A fresh data key in both forms; the caller zeroes the plain one."""

    #: CiphertextBlob of GenerateDataKey, 1..6,144 bytes; public.
    edk: bytes
    #: AES-256 key, 32 bytes.
    data_key: bytearray

    def __repr__(self) -> str:
        """Show the public form's length only."""
        return f"WrappedKey(edk: {len(self.edk)} bytes)"


class TenantKms:
    """KMS as one tenant sees it: one key, one endpoint."""

    def __init__(self, key_arn: str, aws: AwsAccess) -> None:
        matched = KEY_ARN.fullmatch(key_arn)
        if matched is None:
            raise ConfigError("MRGC_KEY_ARN is not the ARN of a KMS key")
        self._key_arn = key_arn
        try:
            # The key's ARN decides the region: data keys live where their key does, whatever AWS_REGION says.
            self._kms: KMSClient = session(aws, region=matched["region"]).client(
                "kms", endpoint_url=aws.kms_endpoint, verify=aws.ca_bundle, config=_CONFIG
            )
        except (BotoCoreError, ValueError) as error:
            raise ConfigError(f"cannot set up the kms client: {type(error).__name__}") from error
        #: Calls that this object has made, answered or not.
        self.calls = 0

    def generate(self, context: Mapping[str, str]) -> WrappedKey:
        """Make a data key under the tenant's key and `context` (KMS GenerateDataKey, KeySpec AES_256).

        Raises:
            KeyAccessError: KMS refuses.
            KeyBusyError: KMS does not answer, or its answer is incomplete.
            ConfigError: there are no AWS credentials.
        """
        self.calls += 1
        try:
            answer = self._kms.generate_data_key(
                KeyId=self._key_arn, KeySpec="AES_256", EncryptionContext=dict(context)
            )
        except (BotoCoreError, ClientError) as error:
            raise _as_mrgc_error(error) from error
        edk = answer.get("CiphertextBlob", b"")
        if not 1 <= len(edk) <= MAX_EDK_BYTES:
            raise KeyBusyError("the answer of kms is incomplete")
        return WrappedKey(edk, _checked(answer.get("Plaintext", b""), answer.get("KeyId"), self._key_arn))

    def decrypt(self, edk: bytes, context: Mapping[str, str]) -> bytearray:
        """Unwrap a data key (KMS Decrypt under exactly this key and `context`).

        Returns:
            The data key, 32 bytes; the caller zeroes it.

        Raises:
            AuthenticationError: edk and context do not belong to this key.
            KeyAccessError: KMS refuses.
            KeyBusyError: KMS does not answer, or its answer is incomplete.
            ConfigError: there are no AWS credentials.
        """
        self.calls += 1
        try:
            answer = self._kms.decrypt(
                KeyId=self._key_arn,
                CiphertextBlob=edk,
                EncryptionContext=dict(context),
                EncryptionAlgorithm="SYMMETRIC_DEFAULT",
            )
        except (BotoCoreError, ClientError) as error:
            raise _as_mrgc_error(error) from error
        return _checked(answer.get("Plaintext", b""), answer.get("KeyId"), self._key_arn)

    def policy(self) -> str:
        """Return the key's live policy (KMS GetKeyPolicy).

        Raises:
            KeyAccessError: KMS refuses; a key of another account has no policy that one could read.
            KeyBusyError: KMS does not answer, or its answer is incomplete.
            ConfigError: there are no AWS credentials.
        """
        self.calls += 1
        try:
            answer = self._kms.get_key_policy(KeyId=self._key_arn, PolicyName="default")
        except (BotoCoreError, ClientError) as error:
            raise _as_mrgc_error(error) from error
        if not answer.get("Policy"):
            raise KeyBusyError("the answer of kms is incomplete")
        return answer["Policy"]

    def grants(self) -> list[Grant]:
        """Return every grant on the key (KMS ListGrants, all pages).

        Raises:
            KeyAccessError: KMS refuses.
            KeyBusyError: KMS does not answer, or its answer is incomplete.
            ConfigError: there are no AWS credentials.
        """
        self.calls += 1
        found: list[Grant] = []
        try:
            for page in self._kms.get_paginator("list_grants").paginate(KeyId=self._key_arn):
                # botocore reads an answer that was cut off as an empty success: no grants, where there may be some.
                if "Grants" not in page:
                    raise KeyBusyError("the answer of kms is incomplete")
                found += (
                    Grant(each.get("GranteePrincipal", ""), tuple(sorted(each.get("Operations", ()))))
                    for each in page["Grants"]
                )
        except (BotoCoreError, ClientError) as error:
            raise _as_mrgc_error(error) from error
        return found

    def close(self) -> None:
        """Close the connections to KMS."""
        self._kms.close()


def session(aws: AwsAccess, *, region: str | None) -> boto3.session.Session:
    """Make a boto3 session from explicit credentials, or from boto3's default chain where there are none.

    Raises:
        ConfigError: AWS_PROFILE names no profile.
    """
    try:
        return boto3.session.Session(
            aws_access_key_id=aws.access_key,
            aws_secret_access_key=aws.secret_key,
            aws_session_token=aws.session_token,
            region_name=region,
        )
    except ProfileNotFound as error:
        raise ConfigError("AWS_PROFILE names no profile") from error


def _checked(plaintext: bytes, key_id: str | None, key_arn: str) -> bytearray:
    # botocore reads an answer that was cut off as an empty success, and the key that answered may be another one.
    if len(plaintext) != DATA_KEY_BYTES or key_id != key_arn:
        raise KeyBusyError("the answer of kms is incomplete or of another key")
    return bytearray(plaintext)


def _as_mrgc_error(error: BotoCoreError | ClientError) -> MrgcError:
    """Map boto3's errors at this seam; texts name the AWS error code, never a request's content."""
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", "unknown"))[:64]
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _WRONG_KEY_CODES:
            return AuthenticationError()
        if code in _BUSY_CODES or status >= 500:
            return KeyBusyError(f"kms is busy: {code}")
        return KeyAccessError(f"kms refused the key: {code}")
    if isinstance(error, NoCredentialsError | PartialCredentialsError | CredentialRetrievalError):
        return ConfigError(f"no usable aws credentials: {type(error).__name__}")
    return KeyBusyError(f"kms does not answer: {type(error).__name__}")
