"""Wait for results: which jobs to look at, how often, until when (policy), and the loop that does it.

Results appear under a name that the tenant computes, so waiting is looking. A look reads the object and authenticates
it: a wait never reports what the object store alone says. Only the hint of docs/spec.md §4 is taken without proof, and
is named so.

Called by `mrgc.client`. May import: the standard library, mrgc.errors, mrgc.results, mrgc.submitted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from random import SystemRandom
from typing import Final

from mrgc.errors import ExpiredError, WaitTimeout
from mrgc.results import OpenedResult
from mrgc.submitted import SubmittedJob

ROUND_JOBS: Final = 64  #: With MIN_REST_S: at most about 1,000 looks a second for nothing, however many jobs wait.
MIN_REST_S: Final = 0.1  #: About what a job takes.
MAX_REST_S: Final = 2.0  #: What a result may lie unseen.
_RANDOM: Final = SystemRandom()


class State(StrEnum):
    """How the wait for one job ended."""

    OK = "ok"
    PARTIAL = "partial"
    FAILED = "failed"
    #: An unauthenticated hint says that the service refused the job.
    REFUSED = "refused"
    #: An object lies where the result belongs, and it is not the authentic result.
    NOT_AUTHENTIC = "result_refused"
    TIMED_OUT = "timed_out"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of the wait for one job."""

    job: SubmittedJob
    state: State
    #: Why, unless the state is ok or partial: a code of mrgc.errors, or of a later service.
    code: str = ""
    #: Present when the state is ok, partial or failed.
    result: OpenedResult | None = field(default=None, repr=False)


class LookSchedule:
    """The policy of a wait: rounds over the pending jobs, rests that grow while nothing comes. No I/O, no clock.

    Args:
        jobs: what to wait for; a job named twice is waited for once.
        deadline_s: unix seconds after which the wait ends for every job; each job's `expires` ends it sooner.
    """

    def __init__(self, jobs: Iterable[SubmittedJob], *, deadline_s: float) -> None:
        self._jobs = {job.job: job for job in jobs}
        self._pending = deque(self._jobs)
        self._deadline_s = deadline_s
        self._idle_rounds = 0

    def __bool__(self) -> bool:
        """Tell whether any job is pending."""
        return bool(self._pending)

    def next_round(self) -> list[SubmittedJob]:
        """Take the jobs that have waited longest since their last look."""
        count = min(ROUND_JOBS, len(self._pending))
        return [self._jobs[self._pending.popleft()] for _ in range(count)]

    def miss(self, job: SubmittedJob, looked_at_s: float) -> Outcome | None:
        """Note that a look found nothing.

        Args:
            job: the job.
            looked_at_s: unix seconds before the look, so that no job times out without a look after its deadline.

        Returns:
            The end of the job's wait, or None if the job is pending again.
        """
        if looked_at_s >= job.expires:
            return Outcome(job, State.TIMED_OUT, ExpiredError.code)
        if looked_at_s >= self._deadline_s:
            return Outcome(job, State.TIMED_OUT, WaitTimeout.code)
        self._pending.append(job.job)
        return None

    def rest_s(self, *, looked: int, found: int, now_s: float) -> float:
        """Say how long to rest after a round.

        Not at all if every look found something; otherwise jittered, doubling from round to round while nothing is
        found, never past a deadline.

        Args:
            looked: jobs of the round.
            found: how many of them ended.
            now_s: unix seconds.
        """
        if found == looked:
            return 0.0
        self._idle_rounds = 0 if found else min(self._idle_rounds + 1, 16)
        longest_s: float = min(MAX_REST_S, MIN_REST_S * 2**self._idle_rounds)
        # Half of it is random: thousands of tenants' waits that began together must not look together.
        rest_s = longest_s * _RANDOM.uniform(0.5, 1.0)
        return max(0.0, min(rest_s, self._next_deadline_s() - now_s))

    def _next_deadline_s(self) -> float:
        # Only the next round's jobs are judged: it is they who would be kept waiting by a rest.
        ahead = (self._jobs[self._pending[i]].expires for i in range(min(ROUND_JOBS, len(self._pending))))
        return min(self._deadline_s, min(ahead, default=self._deadline_s))


#: Looks at jobs and returns, for each, its outcome or None while there is none.
Look = Callable[[Sequence[SubmittedJob]], Sequence[Outcome | None]]


def wait_for(
    schedule: LookSchedule, look: Look, *, now: Callable[[], float], rest: Callable[[float], None]
) -> Iterator[Outcome]:
    """Yield each job's outcome when it is there, in that order.

    Args:
        schedule: which jobs, and until when.
        look: the I/O.
        now: unix seconds.
        rest: sleeps for a number of seconds.

    Raises:
        MrgcError: whatever `look` raises; the remaining jobs are then still unknown.
    """
    while schedule:
        looked_at_s = now()
        jobs = schedule.next_round()
        found = 0
        for job, seen in zip(jobs, look(jobs), strict=True):
            outcome = seen or schedule.miss(job, looked_at_s)
            if outcome is not None:
                found += 1
                yield outcome
        if schedule:
            rest(schedule.rest_s(looked=len(jobs), found=found, now_s=now()))
