"""Headers of sealed jobs and results: their fields, and every rule that public bytes can be held to.

A header object exists only if its map followed docs/spec.md §2 or §4. Nothing here is authenticated: that takes
the data key, in `mrgc.wire.sealed`.

May import: the standard library, mrgc.errors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeVar

from mrgc.errors import FormatError

JSON_TYPE: Final = "application/json"
CBOR_TYPE: Final = "application/cbor"
SAFETENSORS_TYPE: Final = "application/vnd.safetensors"
OCTET_STREAM_TYPE: Final = "application/octet-stream"
STATUSES: Final = ("ok", "partial", "failed")  #: docs/spec.md §3.
USE_JOB: Final = "job"  #: The value of mrgc:use in every job's encryption context.
USE_PAYLOAD: Final = "payload"  #: In that of a bare ciphertext of the JSON protocol (docs/spec.md §8).
USE_STANDALONE: Final = "standalone"  #: In that of a standalone object (docs/spec.md §8).

TENANT: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
KEY_ARN: Final = re.compile(
    r"arn:(?P<partition>aws[a-z-]{0,20}):kms:(?P<region>[a-z0-9-]{5,30}):(?P<account>[0-9]{12})"
    r":key/(?P<key>[A-Za-z0-9-]{1,64})"
)
MODEL: Final = re.compile(r"[a-z0-9][a-z0-9._/-]{0,62}(@sha256:[0-9a-f]{64})?")
RESULT_MODEL: Final = re.compile(r"[a-z0-9][a-z0-9._/-]{0,62}@sha256:[0-9a-f]{64}")
RESULT_TARGET: Final = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/([A-Za-z0-9_-][A-Za-z0-9._=-]*/){0,16}")
#: A request of the JSON protocol, as its caller names it (docs/spec.md §8).
REQUEST_ID: Final = re.compile(r"[\x20-\x7e]{1,128}")
#: The model that a result of the JSON protocol names (docs/spec.md §8).
JSON_PROTOCOL_MODEL: Final = "json@sha256:" + "0" * 64

MAX_ITEMS: Final = 16_384  #: docs/spec.md §2, `items`.
MAX_LIFETIME_S: Final = 1_209_600  #: docs/spec.md §2: expires <= created + 14 days.
MAX_EDK_BYTES: Final = 6_144  #: Longest CiphertextBlob of AWS KMS.
TIME_END: Final = 1 << 40  #: docs/spec.md §0.
HASH_BYTES: Final = 32
JOB_BYTES: Final = 16

_CONTEXT_KEY: Final = re.compile(r"(?!aws:)[a-z0-9][a-z0-9:._/-]{0,127}")
_CONTEXT_VALUE: Final = re.compile(r"[\x20-\x7e]{1,256}")
_EXT_MAX_ENTRIES: Final = 8
_EXT_MAX_KEY_CHARS: Final = 64


class JobHeader(NamedTuple):
    """Header of a sealed job (docs/spec.md §2); optional fields are None when absent."""

    tenant: str
    job: bytes
    key_arn: str
    edk: bytes
    context: dict[str, str]
    salt: bytes
    commit: bytes
    model: str
    type: str
    items: int
    created: int
    expires: int
    floor: int
    result: str | None = None
    hosts: list[bytes] | None = None
    receipt: int | None = None
    policy: bytes | None = None
    ext: dict[str, str | bytes | int] | None = None

    @classmethod
    def from_map(cls, fields: Mapping[str, Any]) -> JobHeader:
        """Check a decoded map against docs/spec.md §2.

        Raises:
            FormatError: a key is missing, unknown or of the wrong type, or a rule does not hold.
        """
        header = _build(cls, fields)
        _ensure_key(header, use=USE_JOB)
        _ensure_job(header)
        ensure(_matches(MODEL, header.model), "model")
        ensure(header.type in (JSON_TYPE, CBOR_TYPE), "type")
        ensure_job_numbers(header.items, header.created, header.expires)
        ensure(_is_uint(header.floor, 0, 3), "floor")
        ensure(header.result is None or _matches(RESULT_TARGET, header.result), "result")
        ensure(header.hosts is None or _are_hosts(header.hosts, header.floor), "hosts")
        ensure(header.receipt is None or _is_uint(header.receipt, 1, 1), "receipt")
        ensure(header.policy is None or _is_bytes(header.policy, HASH_BYTES), "policy")
        return header

    def to_map(self) -> dict[str, Any]:
        """Return the fields that are present, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class ResultHeader(NamedTuple):
    """Header of a sealed result (docs/spec.md §4); optional fields are None when absent."""

    tenant: str
    job: bytes
    key_arn: str
    edk: bytes
    context: dict[str, str]
    salt: bytes
    commit: bytes
    request: bytes
    model: str
    type: str
    status: str
    tier: int
    created: int
    host: bytes | None = None
    receipt: bytes | None = None
    ext: dict[str, str | bytes | int] | None = None

    @classmethod
    def from_map(cls, fields: Mapping[str, Any]) -> ResultHeader:
        """Check a decoded map against docs/spec.md §4.

        Raises:
            FormatError: a key is missing, unknown or of the wrong type, or a rule does not hold.
        """
        header = _build(cls, fields)
        _ensure_key(header, use=USE_JOB)
        _ensure_job(header)
        ensure(_is_bytes(header.request, HASH_BYTES), "request")
        ensure_result_claims(header.model, header.type, header.status)
        ensure(_is_uint(header.tier, 0, 3), "tier")
        ensure(_is_uint(header.created, 0, TIME_END - 1), "created")
        ensure(header.host is None or (_is_bytes(header.host, HASH_BYTES) and header.tier in (1, 2)), "host")
        ensure(header.receipt is None or _is_bytes(header.receipt, HASH_BYTES), "receipt")
        return header

    def to_map(self) -> dict[str, Any]:
        """Return the fields that are present, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class StandaloneHeader(NamedTuple):
    """Header of a standalone object, the JSON protocol's answer to a bare ciphertext (docs/spec.md §8)."""

    tenant: str
    key_arn: str
    edk: bytes
    context: dict[str, str]
    salt: bytes
    commit: bytes
    request_id: str
    created: int

    @classmethod
    def from_map(cls, fields: Mapping[str, Any]) -> StandaloneHeader:
        """Check a decoded map against docs/spec.md §8.

        Raises:
            FormatError: a key is missing, unknown or of the wrong type, or a rule does not hold.
        """
        header = _build(cls, fields)
        _ensure_key(header, use=USE_STANDALONE)
        ensure(len(header.context) == 2, "context")
        ensure(_matches(REQUEST_ID, header.request_id), "request_id")
        ensure(_is_uint(header.created, 0, TIME_END - 1), "created")
        return header

    def to_map(self) -> dict[str, Any]:
        """Return the fields by name."""
        return self._asdict()


def ensure_job_numbers(items: int, created: int, expires: int) -> None:
    """Hold the numbers of a job header that differ from job to job to docs/spec.md §2.

    Raises:
        FormatError: one is no uint of its range, or the job expires before or too long after its creation.
    """
    ensure(_is_uint(items, 1, MAX_ITEMS), "items")
    ensure(_is_uint(created, 0, TIME_END - 1), "created")
    ensure(_is_uint(expires, created + 1, min(created + MAX_LIFETIME_S, TIME_END - 1)), "expires")


def ensure_result_claims(model: object, content_type: object, status: object) -> None:
    """Hold what the parent says of a result to docs/spec.md §3 and §4.

    Raises:
        FormatError: the model has no digest, the status is unknown, or the type is not legal with them.
    """
    ensure(_matches(RESULT_MODEL, model), "model")
    ensure(status in STATUSES, "status")
    legal = [JSON_TYPE] if status == "failed" else [JSON_TYPE, SAFETENSORS_TYPE]
    if model == JSON_PROTOCOL_MODEL and status == "ok":
        legal.append(OCTET_STREAM_TYPE)
    ensure(content_type in legal, "type")


def ensure(holds: object, field: str) -> None:
    """Raise FormatError naming `field` unless the rule `holds`."""
    if not holds:
        raise FormatError(f"header field {field} breaks its rule")


_H = TypeVar("_H", JobHeader, ResultHeader, StandaloneHeader)


def _build(cls: type[_H], fields: Mapping[str, Any]) -> _H:
    if type(fields) is not dict:
        raise FormatError("header is not a map")
    try:
        header = cls(**fields)
    except TypeError:
        raise FormatError("header has a missing or an unknown key") from None
    # None marks an absent field; strict_cbor has no null, so no received value can pose as one.
    if None in fields.values():
        raise FormatError("header field is null")
    return header


def _ensure_key(header: JobHeader | ResultHeader | StandaloneHeader, *, use: str) -> None:
    """Check what says under which data key an object is sealed."""
    ensure(_matches(TENANT, header.tenant), "tenant")
    ensure(_matches(KEY_ARN, header.key_arn), "key_arn")
    ensure(type(header.edk) is bytes and 1 <= len(header.edk) <= MAX_EDK_BYTES, "edk")
    context = header.context
    ensure(type(context) is dict and 2 <= len(context) <= 8, "context")
    ensure(context.get("mrgc:tenant") == header.tenant and context.get("mrgc:use") == use, "context")
    for key, value in context.items():
        ensure(_matches(_CONTEXT_KEY, key) and _matches(_CONTEXT_VALUE, value), "context")
    ensure(_is_bytes(header.salt, HASH_BYTES), "salt")
    ensure(_is_bytes(header.commit, HASH_BYTES), "commit")


def _ensure_job(header: JobHeader | ResultHeader) -> None:
    ensure(_is_bytes(header.job, JOB_BYTES), "job")
    ensure(header.ext is None or _is_ext(header.ext), "ext")


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return type(value) is str and pattern.fullmatch(value) is not None


def _is_bytes(value: object, length: int) -> bool:
    return type(value) is bytes and len(value) == length


def _is_uint(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _are_hosts(hosts: object, floor: int) -> bool:
    return (
        type(hosts) is list
        and 1 <= len(hosts) <= 8
        and all(_is_bytes(host, HASH_BYTES) for host in hosts)
        and floor >= 1
    )


def _is_ext(ext: object) -> bool:
    return (
        type(ext) is dict
        and len(ext) <= _EXT_MAX_ENTRIES
        and all(type(key) is str and len(key) <= _EXT_MAX_KEY_CHARS for key in ext)
        and all(type(value) in (str, bytes, int) for value in ext.values())
    )
