"""How long to wait before the next try: pure policy with jitter.

May import: the standard library. Called by every loop of the intake that meets an outage.
"""

from __future__ import annotations

from collections.abc import Callable
from random import SystemRandom
from typing import Final

#: Hosts that were started from one image must not draw alike, and the system's generator needs no seed.
_JITTER: Final = SystemRandom().random


class Backoff:
    """Doubling waits up to a cap, each shortened by up to a half so that hosts do not return in step.

    Args:
        base_s: first wait.
        cap_s: longest wait.
        jitter: draws from [0, 1).
    """

    def __init__(self, *, base_s: float, cap_s: float, jitter: Callable[[], float] = _JITTER) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._jitter = jitter
        self._failures = 0

    def next_s(self) -> float:
        """Count one failure and return the wait before the next try."""
        # The exponent is bounded so that a long outage does not compute astronomically large numbers.
        full_s = min(self._cap_s, self._base_s * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return full_s * (1.0 - self._jitter() / 2)

    def reset(self) -> None:
        """Forget the failures after a success."""
        self._failures = 0
