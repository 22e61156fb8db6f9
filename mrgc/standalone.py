"""Standalone objects as the tenant reads them: answers of the JSON protocol to bare ciphertexts (docs/spec.md §8).

There is no job to compare one with. What opens was sealed by somebody whom KMS lets generate data keys under the
tenant's key, and nothing more is proved: neither which request it answers, nor that an enclave made it.

Called by `mrgc.client`. May import: the standard library, mrgc.errors, mrgc.results, mrgc.wire.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mrgc.answers import MAX_RESULT_VALUES
from mrgc.errors import AuthenticationError, FormatError, ResultRefused
from mrgc.wire import sealed, strict_json
from mrgc.wire.headers import JSON_TYPE, OCTET_STREAM_TYPE
from mrgc.wire.sealed import MAGIC, VERSION, Kind
from mrgc.wire.strict_cbor import Buffer

_BEGINNING: Final = MAGIC + bytes((VERSION, Kind.STANDALONE))


@dataclass(frozen=True, slots=True)
class OpenedStandalone:
    """A standalone object that opened under the tenant's key."""

    #: What its maker says it answers.
    request_id: str
    #: Unix seconds, by its maker's clock.
    created: int
    body: bytes = field(repr=False)

    @property
    def type(self) -> str:
        """Content type of the body, which no header names: JSON if it is."""
        try:
            self.json()
        except ResultRefused:
            return OCTET_STREAM_TYPE
        return JSON_TYPE

    def json(self) -> Any:
        """Parse a JSON body.

        Raises:
            ResultRefused: the body is not JSON.
        """
        try:
            return strict_json.parse(self.body, max_values=MAX_RESULT_VALUES)
        except FormatError:
            raise ResultRefused(f"the answer to request {self.request_id!r} is not json") from None


def is_standalone(data: Buffer) -> bool:
    """Tell whether bytes begin as a standalone object does (docs/spec.md §1)."""
    return bytes(data[: len(_BEGINNING)]) == _BEGINNING


def open_standalone_of(
    data: Buffer, *, tenant: str, key_arn: str, unwrap: Callable[[bytes, Mapping[str, str]], bytearray]
) -> OpenedStandalone:
    """Compare a standalone object with the tenant's configuration, then authenticate and decrypt it.

    Args:
        data: the object.
        tenant: the tenant's own name, and
        key_arn: its KMS key, both from its configuration, never from the object.
        unwrap: has KMS unwrap a data key under that key and an encryption context; the key is zeroed here.

    Raises:
        ResultRefused: not a standalone object, of another tenant or key, or it does not authenticate.
        KeyAccessError, KeyBusyError, ConfigError: the data key cannot be had.
    """
    try:
        parsed = sealed.parse_standalone(data)
    except FormatError as error:
        raise ResultRefused(f"not a standalone object: {error}") from error
    header = parsed.header
    for name, found, own in (("tenant", header.tenant, tenant), ("key_arn", header.key_arn, key_arn)):
        if found != own:
            raise ResultRefused(f"the standalone object is of another {name}: {found}")
    try:
        data_key = unwrap(header.edk, sealed.standalone_context(tenant))
        try:
            body = bytes(sealed.open_standalone(parsed, data_key=data_key))
        finally:
            data_key[:] = bytes(len(data_key))
    except AuthenticationError as error:
        raise ResultRefused("the standalone object does not authenticate") from error
    return OpenedStandalone(header.request_id, header.created, body)
