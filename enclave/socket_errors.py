"""Which errors may leave the enclave, and as what (docs/spec.md §6 and §8).

Called by `enclave.batches` and `enclave.connection`. May import: the standard library, mrgc.errors.
"""

from __future__ import annotations

from typing import Final

from mrgc.errors import InternalError, MrgcError

#: The codes of docs/spec.md §6, and the two that only the JSON protocol has. Whatever has another one is the enclave's
#: own affair.
SOCKET_CODES: Final = frozenset(
    {
        "auth",
        "bad_format",
        "busy",
        "duplicate",
        "expired",
        "internal",
        "key_access",
        "key_busy",
        "no_session",
        "no_token",
        "ticket",
        "too_large",
        "trust_floor",
        "unknown_request",
        "unsupported",
    }
)


def socket_error(error: MrgcError) -> MrgcError:
    """Return the error to answer with: `error` itself, or InternalError for one that stays inside.

    It no longer leads to the calls that it was raised in. They hold the request's buffers and, through the list of
    outcomes, the error: a cycle that would keep whole frames beyond the budget that they were admitted under.
    """
    if error.code not in SOCKET_CODES:
        return InternalError("failure inside the enclave")
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
