"""What the enclave agent does next: pure policy, no clock, no socket, no file.

The token is this enclave boot's door key, so a new boot gets a new one; an enclave that is already locked keeps the one
in the token file, whichever agent wrote it (docs/spec.md §6).

Called by `worker.enclave_agent`. May import: the standard library, mrgc.wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from mrgc.wire.enclave_protocol import Health

#: How often credentials that never expire by themselves are sent again, and how long the enclave may use them.
STATIC_RESEND_S: Final = 900.0
STATIC_LIFETIME_S: Final = 3_600
#: The same for credentials of a role: botocore renews those with less than 600 s left before it hands them out.
ROLE_RESEND_S: Final = 150.0
ROLE_LIFETIME_S: Final = 600


class Step(Enum):
    """One thing to do, after which the enclave is looked at again."""

    #: The enclave has just booted: write a new token file, then say hello with it.
    NEW_TOKEN = "new_token"  # noqa: S105  not a secret
    #: The enclave knows the token in the file, but not yet this connection.
    HELLO = "hello"
    #: The enclave was locked with a token that we do not have; only its restart helps.
    LOCKED_OUT = "locked_out"
    SEND_CREDENTIALS = "send_credentials"
    WATCH = "watch"


@dataclass(frozen=True, slots=True)
class View:
    """What the agent sees when it decides."""

    health: Health
    #: The token file holds a token of the right length.
    has_token: bool
    #: This connection's hello was accepted.
    said_hello: bool
    #: This connection's hello was refused.
    was_refused: bool
    #: Seconds since credentials were sent to this boot; None if never.
    credentials_age_s: float | None
    #: Seconds after which they are sent again.
    resend_s: float


def next_step(view: View) -> Step:
    """Decide.

    Returns:
        The first thing that is missing between this agent and a serving enclave.
    """
    if not view.health.hello:
        return Step.NEW_TOKEN
    if not view.said_hello:
        return Step.HELLO if view.has_token and not view.was_refused else Step.LOCKED_OUT
    if view.credentials_age_s is None or view.credentials_age_s >= view.resend_s:
        return Step.SEND_CREDENTIALS
    return Step.WATCH
