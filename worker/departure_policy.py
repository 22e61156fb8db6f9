"""What the instance's metadata says about its end: pure policy.

Rules: Amazon EC2 User Guide, "Spot Instance interruption notices" and "EC2 instance rebalance recommendations"; Amazon
EC2 Auto Scaling User Guide, "Retrieve the target lifecycle state through instance metadata".

May import: the standard library. Called by worker.departure.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Final

SPOT_PATH: Final = "spot/instance-action"
STATE_PATH: Final = "autoscaling/target-lifecycle-state"
REBALANCE_PATH: Final = "events/recommendations/rebalance"

#: Those that end the instance. One that is stopped into a warm pool gets its SIGTERM from the service manager, and one
#: that leaves its group (Detached, Standby) lives on.
_ENDING: Final = frozenset({"Terminated", "Warmed:Terminated"})
_ACTIONS: Final = frozenset({"terminate", "stop", "hibernate"})


class Cause(StrEnum):
    """Why the instance goes away."""

    SPOT = "spot"
    LIFECYCLE = "lifecycle"
    REBALANCE = "rebalance"


def cause_of(*, spot: str | None, state: str | None, rebalance: str | None) -> Cause | None:
    """Judge what was read at the three paths; None stands for nothing there, or not asked for.

    The lifecycle comes first: a hook waits for an answer, whatever else is going on.
    """
    if state is not None and state.strip() in _ENDING:
        return Cause.LIFECYCLE
    if _member(spot, "action") in _ACTIONS:
        return Cause.SPOT
    if _member(rebalance, "noticeTime"):
        return Cause.REBALANCE
    return None


def _member(text: str | None, name: str) -> str:
    try:
        found = json.loads(text) if text is not None else None
    except (ValueError, RecursionError):
        return ""
    value = found.get(name) if isinstance(found, dict) else None
    return value if isinstance(value, str) else ""
