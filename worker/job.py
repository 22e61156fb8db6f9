"""One admitted job on its way through the intake.

May import: the standard library, worker.sources.base, worker.backoff. Called by the intake's modules.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from worker.backoff import Backoff
from worker.sources.base import Lease

FIRST_RETRY_S: Final = 0.25
LONGEST_RETRY_S: Final = 30.0


@dataclass(eq=False, slots=True)
class Job:
    """A sealed job whose header was admitted; its tag is unverified. Compared by identity."""

    lease: Lease
    sealed: bytes = field(repr=False)
    #: As in the header, with or without digest.
    model: str
    #: Unix seconds.
    expires: int
    #: The larger of the sealed job and its expected answer.
    cost_bytes: int
    #: Where its result goes: prefix URL ‖ tenant ‖ "/" ‖ job hex ‖ "/" ‖ request hex, without suffix.
    object_url: str
    #: Its tenant's jobs share no batch with others'.
    is_exclusive: bool = False
    backoff: Backoff = field(default_factory=lambda: Backoff(base_s=FIRST_RETRY_S, cap_s=LONGEST_RETRY_S), repr=False)

    @property
    def tenant(self) -> str:
        """Whose job it is: its queue's tenant, which admission found equal to its header's."""
        return self.lease.tenant

    @property
    def result_url(self) -> str:
        """Name of the result object (docs/spec.md §4)."""
        return f"{self.object_url}.mrgc"

    @property
    def hint_url(self) -> str:
        """Name of the unauthenticated hint that the job was refused (docs/spec.md §4)."""
        return f"{self.object_url}.refused"
