"""Wait for results: which jobs to look at, how often, until when (policy), and the loop that does it.

Results appear under a name that the tenant computes, so waiting is looking. A look reads the object and authenticates
it: a wait never reports what the object store alone says. Only the hint of docs/spec.md §4 is taken without proof, and
is named so. A notice (docs/spec.md §5) only says which job to look at next.

Called by `mrgc.client`. May import: the standard library, mrgc.errors, mrgc.results, mrgc.submitted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from random import SystemRandom
from typing import Final

from mrgc.errors import ExpiredError, WaitTimeout
from mrgc.results import OpenedResult
from mrgc.submitted import SubmittedJob

ROUND_JOBS: Final = 64  #: With MIN_REST_S: at most about 1,000 looks a second for nothing, however many jobs wait.
MIN_REST_S: Final = 0.1  #: About what a job takes.
MAX_REST_S: Final = 2.0  #: What a result may lie unseen.
#: The same where the service's notices are heard, some of which may be lost.
MAX_ANNOUNCED_REST_S: Final = 10.0
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
        #: Those that have waited longest since their last look come first.
        self._pending = OrderedDict.fromkeys(self._jobs)
        #: Those of which a notice was heard.
        self._announced: OrderedDict[bytes, None] = OrderedDict()
        self._deadline_s = deadline_s
        self._idle_rounds = 0
        self._longest_rest_s = MAX_REST_S
        #: Whether the last round was a poll, and when the next is due; rounds of announced jobs come between polls.
        self._was_poll = False
        self._poll_at_s = 0.0

    def __bool__(self) -> bool:
        """Tell whether any job is pending."""
        return bool(self._pending or self._announced)

    @property
    def first_created_s(self) -> int:
        """When the oldest job was created, unix seconds."""
        return min((job.created for job in self._jobs.values()), default=0)

    def is_pending(self, job: bytes) -> bool:
        """Tell whether a job is pending, and no notice of it was heard."""
        return job in self._pending

    def announce(self, jobs: Iterable[bytes]) -> None:
        """Note the jobs that a notice was heard of: they are looked at next, and polls become rarer."""
        for job in jobs:
            self._longest_rest_s = MAX_ANNOUNCED_REST_S
            if job in self._pending:
                del self._pending[job]
                self._announced[job] = None

    def next_round(self) -> list[SubmittedJob]:
        """Take the jobs to look at now: announced ones, or else those whose last look is longest ago."""
        self._was_poll = not self._announced
        chosen = self._announced or self._pending
        return [self._jobs[chosen.popitem(last=False)[0]] for _ in range(min(ROUND_JOBS, len(chosen)))]

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
        self._pending[job.job] = None
        return None

    def rest_s(self, *, looked: int, found: int, now_s: float) -> float:
        """Say how long to rest after a round.

        Not at all if every look found something; otherwise jittered, doubling from poll to poll while nothing is found,
        never past a deadline. Rounds of announced jobs come between polls and put none off.

        Args:
            looked: jobs of the round.
            found: how many of them ended.
            now_s: unix seconds.
        """
        if self._was_poll:
            self._poll_at_s = now_s + (0.0 if found == looked else self._drawn_rest_s(found))
        if self._announced:
            return 0.0
        return max(0.0, min(self._poll_at_s, self._next_deadline_s()) - now_s)

    def _drawn_rest_s(self, found: int) -> float:
        self._idle_rounds = 0 if found else min(self._idle_rounds + 1, 16)
        longest_s: float = min(self._longest_rest_s, MIN_REST_S * 2**self._idle_rounds)
        # Half of it is random: thousands of tenants' waits that began together must not look together.
        return longest_s * _RANDOM.uniform(0.5, 1.0)

    def _next_deadline_s(self) -> float:
        # Only the next round's jobs are judged: it is they who would be kept waiting by a rest.
        ahead = (self._jobs[job].expires for job in islice(self._pending, ROUND_JOBS))
        return min(self._deadline_s, min(ahead, default=self._deadline_s))


#: Looks at jobs and returns, for each, its outcome or None while there is none.
Look = Callable[[Sequence[SubmittedJob]], Sequence[Outcome | None]]
#: Rests for a number of seconds, or until it hears of jobs that have ended; returns their ids.
Rest = Callable[[float], Iterable[bytes]]


def wait_for(schedule: LookSchedule, look: Look, *, now: Callable[[], float], rest: Rest) -> Iterator[Outcome]:
    """Yield each job's outcome when it is there, in that order.

    Args:
        schedule: which jobs, and until when.
        look: the I/O.
        now: unix seconds.
        rest: between rounds.

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
            schedule.announce(rest(schedule.rest_s(looked=len(jobs), found=found, now_s=now())))
