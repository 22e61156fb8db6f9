"""Sealed objects: layout, key schedule, seal and open (docs/spec.md §1).

A sealed object is `prefix (12) ‖ header (H, CBOR) ‖ ciphertext (n) ‖ tag (16)`, and the first 12+H bytes are the
AAD. Parsing checks form only and returns a type that nothing else builds; opening authenticates. The tenant's
client, the enclave and the intake share this module; only the first two ever hold a data key.

May import: the standard library, cryptography, mrgc.errors, mrgc.wire.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from enum import IntEnum
from typing import Any, Final, NamedTuple, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mrgc.errors import AuthenticationError, ExpiredError, FormatError, TooLargeError
from mrgc.wire import strict_cbor
from mrgc.wire.headers import USE_STANDALONE, JobHeader, ResultHeader, StandaloneHeader
from mrgc.wire.strict_cbor import Buffer

MAGIC: Final = b"mrgc"
VERSION: Final = 1
MAX_HEADER_BYTES: Final = 16_384
MAX_BODY_BYTES: Final = 33_554_432  #: n; a deployment may set less.
MAX_TRAILER_BYTES: Final = 16_384
TAG_BYTES: Final = 16
DATA_KEY_BYTES: Final = 32
SALT_BYTES: Final = 32
COMMIT_BYTES: Final = 32
CLOCK_SKEW_S: Final = 300  #: docs/spec.md §2, check (2).

#: Magic, version, kind, header length, body length.
PREFIX: Final = struct.Struct(">4sBBHI")
_SHA512: Final = SHA512()
_AEAD_KEY_BYTES: Final = 32
#: Constant, because every sealing derives a key of its own from a fresh salt: no key ever meets a second nonce.
_NONCE: Final = bytes(12)
_STANDALONE_INFO: Final = b"mrgc/1/standalone\x00"


class Kind(IntEnum):
    """What a sealed object is; a reader demands the kind it expects."""

    JOB = 1
    RESULT = 2
    STANDALONE = 3


class SealedJob(NamedTuple):
    """A job whose form and header were checked; its tag was not."""

    header: JobHeader
    aad: bytes
    #: Ciphertext ‖ tag, a view into the received object.
    ciphertext: memoryview
    #: SHA-256 of the whole object, offset 0 through the tag (docs/spec.md §1).
    request: bytes

    @property
    def body_bytes(self) -> int:
        """Length of the plaintext."""
        return len(self.ciphertext) - TAG_BYTES


class SealedResult(NamedTuple):
    """A result whose form and header were checked; its tag was not."""

    header: ResultHeader
    aad: bytes
    ciphertext: memoryview
    trailer: memoryview


class JobDraft(NamedTuple):
    """What a tenant decides of a job header; `seal_job` adds salt and commitment."""

    tenant: str
    job: bytes
    key_arn: str
    edk: bytes
    context: dict[str, str]
    model: str
    type: str
    items: int
    created: int
    expires: int
    floor: int = 0
    result: str | None = None
    hosts: list[bytes] | None = None
    receipt: int | None = None
    policy: bytes | None = None
    ext: dict[str, str | bytes | int] | None = None


class ResultDraft(NamedTuple):
    """What the enclave decides of a result header; `seal_result` adds salt and commitment."""

    tenant: str
    job: bytes
    key_arn: str
    edk: bytes
    context: dict[str, str]
    request: bytes
    model: str
    type: str
    status: str
    tier: int
    created: int
    host: bytes | None = None
    receipt: bytes | None = None
    ext: dict[str, str | bytes | int] | None = None


class SealedStandalone(NamedTuple):
    """A standalone object whose form and header were checked; its tag was not."""

    header: StandaloneHeader
    aad: bytes
    ciphertext: memoryview


class StandaloneDraft(NamedTuple):
    """What the enclave decides of a standalone header; the context follows from the tenant."""

    tenant: str
    key_arn: str
    edk: bytes
    request_id: str
    created: int


class _Layout(NamedTuple):
    fields: dict[str, Any]
    aad: bytes
    ciphertext: memoryview
    trailer: memoryview


def parse_job(data: Buffer, *, max_body_bytes: int = MAX_BODY_BYTES) -> SealedJob:
    """Check the form of a sealed job (docs/spec.md §1, and §2 check 1).

    Args:
        data: the whole object; the result keeps views into it.
        max_body_bytes: the deployment's body cap.

    Raises:
        FormatError: layout or header breaks its rules.
        TooLargeError: the body is legal but over the deployment's cap.
    """
    layout = _split(data, Kind.JOB, max_body_bytes)
    if layout.trailer:
        raise FormatError("bytes after the tag of a sealed job")
    return SealedJob(JobHeader.from_map(layout.fields), layout.aad, layout.ciphertext, hashlib.sha256(data).digest())


def parse_result(data: Buffer, *, max_body_bytes: int = MAX_BODY_BYTES) -> SealedResult:
    """Check the form of a sealed result (docs/spec.md §1 and §4).

    Raises:
        FormatError: layout, header or trailer breaks its rules.
        TooLargeError: the body is legal but over the reader's cap.
    """
    layout = _split(data, Kind.RESULT, max_body_bytes)
    header = ResultHeader.from_map(layout.fields)
    if header.receipt is None and layout.trailer:
        raise FormatError("bytes after the tag of a result without receipt")
    if header.receipt is not None and not 1 <= len(layout.trailer) <= MAX_TRAILER_BYTES:
        raise FormatError("receipt trailer is missing or too long")
    return SealedResult(header, layout.aad, layout.ciphertext, layout.trailer)


def parse_standalone(data: Buffer, *, max_body_bytes: int = MAX_BODY_BYTES) -> SealedStandalone:
    """Check the form of a standalone object (docs/spec.md §1 and §8).

    Raises:
        FormatError: layout or header breaks its rules.
        TooLargeError: the body is legal but over the reader's cap.
    """
    layout = _split(data, Kind.STANDALONE, max_body_bytes)
    if layout.trailer:
        raise FormatError("bytes after the tag of a standalone object")
    return SealedStandalone(StandaloneHeader.from_map(layout.fields), layout.aad, layout.ciphertext)


def parse_job_aad(aad: Buffer) -> JobHeader:
    """Read the header back from the AAD of a sealed job, as `seal_batch` receives it (docs/spec.md §6).

    The caller has authenticated the AAD by its ticket; the form is checked all the same.

    Raises:
        FormatError: the bytes are not the first 12+H bytes of a sealed job.
    """
    header_bytes, _ = _unpack_prefix(aad, Kind.JOB)
    if len(aad) != PREFIX.size + header_bytes:
        raise FormatError("aad of a sealed job has the wrong length")
    return JobHeader.from_map(strict_cbor.decode(aad[PREFIX.size :]))


class Dated(Protocol):
    """What says when it was created and when it expires: a job's header, and what stands for one."""

    @property
    def created(self) -> int:
        """Unix seconds."""

    @property
    def expires(self) -> int:
        """Unix seconds."""


def ensure_in_time(header: Dated, now_s: float) -> None:
    """Check (2) of docs/spec.md §2.

    Args:
        header: the job's header.
        now_s: unix seconds; in the enclave from the NSM, never from the parent.

    Raises:
        ExpiredError: `created` lies over 300 s ahead, or `expires` is reached.
    """
    if header.created > now_s + CLOCK_SKEW_S or now_s >= header.expires:
        raise ExpiredError("job is expired or created in the future")


def seal_job(draft: JobDraft, plaintext: Buffer, *, data_key: Buffer) -> bytes:
    """Seal a tenant's payload.

    Args:
        draft: the header's fields; held to docs/spec.md §2 before anything is sealed.
        plaintext: the payload (docs/spec.md §3), 1..33,554,432 bytes.
        data_key: AES-256 key, 32 bytes, whose wrapped form is draft.edk.

    Raises:
        FormatError: a field breaks its rule, or the plaintext is empty or over the cap.
    """
    fields = {name: value for name, value in draft._asdict().items() if value is not None}
    salt, aead_key, commit = fresh_keys(data_key, job_info(draft.job))
    fields |= {"salt": salt, "commit": commit}
    JobHeader.from_map(fields)
    return _assemble(Kind.JOB, fields, plaintext, aead_key)


def seal_result(draft: ResultDraft, body: Buffer, *, data_key: Buffer) -> bytes:
    """Seal a result body under a key derived from the request's own data key (docs/spec.md §4).

    Raises:
        FormatError: a field breaks its rule, or the body is empty or over the cap.
    """
    fields = {name: value for name, value in draft._asdict().items() if value is not None}
    salt, aead_key, commit = fresh_keys(data_key, result_info(draft.job, draft.request))
    fields |= {"salt": salt, "commit": commit}
    ResultHeader.from_map(fields)
    return _assemble(Kind.RESULT, fields, body, aead_key)


def seal_standalone(draft: StandaloneDraft, body: Buffer, *, data_key: Buffer) -> bytes:
    """Seal the answer to a bare ciphertext under a data key of its own (docs/spec.md §8).

    Raises:
        FormatError: a field breaks its rule, or the body is empty or over the cap.
    """
    salt, aead_key, commit = fresh_keys(data_key, _STANDALONE_INFO)
    fields = draft._asdict() | {"context": standalone_context(draft.tenant), "salt": salt, "commit": commit}
    StandaloneHeader.from_map(fields)
    return _assemble(Kind.STANDALONE, fields, body, aead_key)


def open_job(sealed: SealedJob, *, data_key: Buffer) -> bytearray:
    """Authenticate and decrypt a job: checks (5) and (6) of docs/spec.md §2.

    Returns:
        The plaintext in a buffer of its own, which the caller zeroes after use.

    Raises:
        AuthenticationError: the data key, the commitment or the tag does not verify.
    """
    header = sealed.header
    aead_key = committed_key(data_key, header.salt, header.commit, job_info(header.job))
    return decrypt(sealed.ciphertext, sealed.aad, aead_key=aead_key)


def open_result(sealed: SealedResult, *, data_key: Buffer) -> bytearray:
    """Authenticate and decrypt a result.

    The reader must also compare tenant, job, key_arn, edk, context and request with what it submitted
    (docs/spec.md §4); `mrgc.client` does.

    Raises:
        AuthenticationError: the data key, the commitment or the tag does not verify.
    """
    header = sealed.header
    info = result_info(header.job, header.request)
    aead_key = committed_key(data_key, header.salt, header.commit, info)
    return decrypt(sealed.ciphertext, sealed.aad, aead_key=aead_key)


def open_standalone(sealed: SealedStandalone, *, data_key: Buffer) -> bytearray:
    """Authenticate and decrypt a standalone object.

    It proves only that its maker may generate data keys under the header's key (docs/spec.md §8). The reader must
    compare tenant, key_arn and request_id with what it asked for.

    Raises:
        AuthenticationError: the data key, the commitment or the tag does not verify.
    """
    header = sealed.header
    aead_key = committed_key(data_key, header.salt, header.commit, _STANDALONE_INFO)
    return decrypt(sealed.ciphertext, sealed.aad, aead_key=aead_key)


def standalone_context(tenant: str) -> dict[str, str]:
    """The encryption context of a standalone object's data key (docs/spec.md §8)."""
    return {"mrgc:tenant": tenant, "mrgc:use": USE_STANDALONE}


def job_info(job: bytes) -> bytes:
    """HKDF info of a job (docs/spec.md §1)."""
    return b"mrgc/1/job\x00" + job


def result_info(job: bytes, request: bytes) -> bytes:
    """HKDF info of a result (docs/spec.md §1): binds it to one sealed job, byte for byte."""
    return b"mrgc/1/result\x00" + job + request


def derive(data_key: Buffer, salt: bytes, info: bytes) -> tuple[bytes, bytes]:
    """Derive the AEAD key and the commitment: the two halves of one block of HKDF-SHA512 (RFC 5869).

    Returns:
        (AEAD key, 32 bytes; commitment, 32 bytes).
    """
    output = HKDF(_SHA512, _AEAD_KEY_BYTES + COMMIT_BYTES, salt, info).derive(data_key)
    return output[:_AEAD_KEY_BYTES], output[_AEAD_KEY_BYTES:]


def _split(data: Buffer, kind: Kind, max_body_bytes: int) -> _Layout:
    view = memoryview(data)
    header_bytes, body_bytes = _unpack_prefix(view, kind)
    body_start = PREFIX.size + header_bytes
    end = body_start + body_bytes + TAG_BYTES
    if len(view) < end:
        raise FormatError("sealed object is cut short")
    if body_bytes > max_body_bytes:
        raise TooLargeError("body is over this deployment's cap")
    aad = bytes(view[:body_start])
    fields = strict_cbor.decode(aad[PREFIX.size :])
    return _Layout(fields, aad, view[body_start:end], view[end:])


def _unpack_prefix(data: Buffer, kind: Kind) -> tuple[int, int]:
    if len(data) < PREFIX.size:
        raise FormatError("sealed object is cut short")
    magic, version, found_kind, header_bytes, body_bytes = PREFIX.unpack_from(data)
    if magic != MAGIC or version != VERSION or found_kind != kind:
        raise FormatError("not a sealed object of the expected version and kind")
    if not (1 <= header_bytes <= MAX_HEADER_BYTES and 1 <= body_bytes <= MAX_BODY_BYTES):
        raise FormatError("sealed object declares a length outside its limits")
    return header_bytes, body_bytes


def fresh_keys(data_key: Buffer, info: bytes) -> tuple[bytes, bytes, bytes]:
    """Derive the keys of a new object under a salt of its own.

    Returns:
        (salt, 32 bytes; AEAD key, 32 bytes; commitment, 32 bytes).

    Raises:
        AuthenticationError: the data key has another length than 32 bytes.
    """
    if len(data_key) != DATA_KEY_BYTES:
        raise AuthenticationError
    salt = os.urandom(SALT_BYTES)
    return salt, *derive(data_key, salt, info)


def committed_key(data_key: Buffer, salt: bytes, commit: bytes, info: bytes) -> bytes:
    """Derive the AEAD key of a received object and compare the commitment.

    Raises:
        AuthenticationError: the data key has another length than 32 bytes, or is not the one that was committed to.
    """
    if len(data_key) != DATA_KEY_BYTES:
        raise AuthenticationError
    aead_key, expected = derive(data_key, salt, info)
    if not hmac.compare_digest(expected, commit):
        raise AuthenticationError
    return aead_key


def ensure_body(plaintext: Buffer) -> None:
    """Raise FormatError unless there is a plaintext, within the cap."""
    if not 1 <= len(plaintext) <= MAX_BODY_BYTES:
        raise FormatError("plaintext is empty or over 33,554,432 bytes")


def encrypt(plaintext: Buffer, aad: bytes, *, aead_key: bytes) -> bytes:
    """Return the whole object, AAD ‖ ciphertext ‖ tag, under a key that is used for nothing else."""
    return aad + AESGCM(aead_key).encrypt(_NONCE, plaintext, aad)


def decrypt(ciphertext: memoryview, aad: bytes, *, aead_key: bytes) -> bytearray:
    """Authenticate and decrypt ciphertext ‖ tag into a buffer of its own.

    Raises:
        AuthenticationError: the tag does not verify.
    """
    plaintext = bytearray(len(ciphertext) - TAG_BYTES)
    try:
        AESGCM(aead_key).decrypt_into(_NONCE, ciphertext, aad, plaintext)
    except InvalidTag:
        # Decryption has filled it before the tag was compared: of a genuine object with one flipped bit, all but that.
        plaintext[:] = bytes(len(plaintext))
        raise AuthenticationError from None
    return plaintext


def _assemble(kind: Kind, fields: dict[str, Any], plaintext: Buffer, aead_key: bytes) -> bytes:
    header = strict_cbor.encode(fields)
    if not 1 <= len(header) <= MAX_HEADER_BYTES:
        raise FormatError("header is over 16,384 bytes")
    ensure_body(plaintext)
    aad = PREFIX.pack(MAGIC, VERSION, kind, len(header), len(plaintext)) + header
    return encrypt(plaintext, aad, aead_key=aead_key)
