"""Names of keys and fields of stream entries (docs/spec.md §5): pure.

Stream `q:TENANT` with group `gpu`; stream `dead:TENANT` for what cannot be served; stream `done:TENANT` for notices of
ended jobs; hash `deaths:TENANT` for engine
deaths by entry, because the server's own delivery count also counts hand-backs.

May import: the standard library, mrgc.errors, mrgc.wire, worker.sources. Called by worker.sources.redis_*.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mrgc.errors import FormatError, TooLargeError
from mrgc.wire import strict_cbor
from worker.sources.base import BadMessage, ClaimCheck
from worker.sources.messages import MAX_MESSAGE_BYTES, MAX_REF_BYTES, claim_check

GROUP: Final = "gpu"
#: Owner of entries that were handed back. Nobody reads under this name.
RETURNED: Final = "returned"
#: Idle time of an entry that was handed back: over every lease.
RETURNED_IDLE_MS: Final = 3_600_000


def queue_stream(tenant: str) -> str:
    """Return the key of a tenant's jobs."""
    return f"q:{tenant}"


def dead_stream(tenant: str) -> str:
    """Return the key of a tenant's dead letters."""
    return f"dead:{tenant}"


def done_stream(tenant: str) -> str:
    """Return the key of a tenant's notices of ended jobs."""
    return f"done:{tenant}"


def deaths_hash(tenant: str) -> str:
    """Return the key of a tenant's engine deaths by entry id."""
    return f"deaths:{tenant}"


def tenant_of(stream: bytes) -> str:
    """Return whose jobs a stream holds."""
    return stream.decode().removeprefix("q:")


def sent_s(message_id: bytes) -> float:
    """Return when an entry arrived, unix seconds: the first half of its id is the server's clock in milliseconds."""
    return int(message_id.partition(b"-")[0]) / 1_000


def parse_fields(fields: Mapping[bytes, bytes]) -> bytes | ClaimCheck | BadMessage:
    """Read one entry.

    Args:
        fields: the entry as received; exactly one of `job` and `ref` is legal.

    Returns:
        The sealed job, a reference to it, or why the entry is neither.
    """
    try:
        if fields.keys() == {b"job"}:
            return _job(fields[b"job"])
        if fields.keys() == {b"ref"}:
            return _claim_check(fields[b"ref"])
    except FormatError as err:
        return BadMessage(err.code)
    return BadMessage(FormatError.code)


def _job(value: bytes) -> bytes:
    if len(value) > MAX_MESSAGE_BYTES:
        raise TooLargeError("message is over 524,288 bytes")
    return value


def _claim_check(value: bytes) -> ClaimCheck:
    if len(value) > MAX_REF_BYTES:
        raise TooLargeError("claim check is over 4,096 bytes")
    ref = strict_cbor.decode(value, max_depth=1)
    if type(ref) is not dict or ref.keys() != {"url", "sha256", "bytes"}:
        raise FormatError("claim check does not have exactly url, sha256 and bytes")
    return claim_check(ref["url"], ref["sha256"], ref["bytes"])
