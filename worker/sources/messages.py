"""What every broker's messages have in common: limits, the form of a claim check (docs/spec.md §5), a last day. Pure.

May import: the standard library, mrgc.errors, mrgc.wire, worker.sources.base. Called by worker.sources and the tasks.
"""

from __future__ import annotations

from typing import Any, Final

from mrgc.errors import FormatError
from mrgc.wire import sealed
from mrgc.wire.headers import HASH_BYTES, MAX_LIFETIME_S
from worker.sources.base import BadMessage, ClaimCheck

#: docs/spec.md §5: the longest job that travels inside a message.
MAX_MESSAGE_BYTES: Final = 524_288
#: A claim check is a URL of at most 2 KiB, a hash and a length.
MAX_REF_BYTES: Final = 4_096
MAX_URL_CHARS: Final = 2_048


def claim_check(url: Any, sha256: Any, length: Any) -> ClaimCheck:
    """Check the parts of a claim check as they were parsed.

    Raises:
        FormatError: one of them is not of its form; names it.
    """
    if type(url) is not str or len(url) > MAX_URL_CHARS:
        raise FormatError("claim check url")
    if type(sha256) is not bytes or len(sha256) != HASH_BYTES:
        raise FormatError("claim check sha256")
    if type(length) is not int or length < 1:
        raise FormatError("claim check bytes")
    return ClaimCheck(url, sha256, length)


def end_of_life_s(body: bytes | ClaimCheck | BadMessage, *, sent_s: float) -> float:
    """Return the unix second from which no redrive of a message could serve it any more.

    Args:
        body: of the message.
        sent_s: when it was sent, for want of a readable header.
    """
    if isinstance(body, bytes):
        try:
            return sealed.parse_job(body).header.expires
        except FormatError:
            pass
    return sent_s + MAX_LIFETIME_S
