"""The policy of a wait, without I/O: who is looked at, how long the rests are, when it ends."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrgc.errors import StoreUnavailable
from mrgc.submitted import SubmittedJob
from mrgc.waiting import (
    MAX_ANNOUNCED_REST_S,
    MAX_REST_S,
    MIN_REST_S,
    ROUND_JOBS,
    LookSchedule,
    Outcome,
    State,
    wait_for,
)
from tests.client.test_submitted import JOB


def make_jobs(expiries: Sequence[int]) -> list[SubmittedJob]:
    """Jobs that expire at these unix seconds."""
    return [JOB._replace(job=index.to_bytes(16, "big"), expires=at) for index, at in enumerate(expiries)]


class Service:
    """Jobs that are ready at given times, and the clock that the wait reads."""

    def __init__(self, ready_at_s: dict[bytes, float], announces_at_s: dict[bytes, float] | None = None) -> None:
        self.ready_at_s = ready_at_s
        self.announces_at_s = announces_at_s or {}
        self.now_s = 0.0
        self.looks: list[tuple[float, bytes]] = []
        self.rests: list[float] = []

    def look(self, jobs: Sequence[SubmittedJob]) -> list[Outcome | None]:
        """Look at some jobs; a round takes a millisecond."""
        self.now_s += 0.001
        self.looks += [(self.now_s, job.job) for job in jobs]
        return [Outcome(job, State.OK) if self.ready_at_s[job.job] <= self.now_s else None for job in jobs]

    def rest(self, seconds: float) -> list[bytes]:
        """Let time pass until the service announces a job."""
        heard_at_s = min((at_s for at_s in self.announces_at_s.values() if at_s > self.now_s), default=float("inf"))
        seconds = min(seconds, max(0.0, heard_at_s - self.now_s))
        self.rests.append(seconds)
        self.now_s += seconds
        heard = [job for job, at_s in self.announces_at_s.items() if at_s <= self.now_s]
        for job in heard:
            del self.announces_at_s[job]
        return heard

    def wait(self, jobs: Sequence[SubmittedJob], *, deadline_s: float = float("inf")) -> list[tuple[float, Outcome]]:
        """Wait for jobs; tell when each outcome came."""
        schedule = LookSchedule(jobs, deadline_s=deadline_s)
        outcomes = wait_for(schedule, self.look, now=lambda: self.now_s, rest=self.rest)
        return [(self.now_s, outcome) for outcome in outcomes]


@given(
    times=st.lists(st.tuples(st.integers(1, 90), st.floats(0, 100)), min_size=1, max_size=200),
    deadline_s=st.floats(0, 120),
)
def test_every_job_ends_once_in_time_and_rightly(times: list[tuple[int, float]], deadline_s: float) -> None:
    """A result that is there before job and wait end is found; otherwise the job times out, at its end, not before."""
    jobs = make_jobs([expires for expires, _ in times])
    service = Service({job.job: ready for job, (_, ready) in zip(jobs, times, strict=True)})
    ended = {outcome.job.job: (at_s, outcome) for at_s, outcome in service.wait(jobs, deadline_s=deadline_s)}
    assert len(ended) == len(jobs)
    for job in jobs:
        at_s, outcome = ended[job.job]
        end_s = min(job.expires, deadline_s)
        if outcome.state is State.OK:
            assert at_s >= service.ready_at_s[job.job]
        else:
            assert outcome.state is State.TIMED_OUT
            assert at_s >= end_s
            assert service.ready_at_s[job.job] > end_s, "a result that was there in time was missed"
            assert outcome.code == ("expired" if job.expires <= deadline_s else "timeout")
        assert at_s <= max(end_s, service.ready_at_s[job.job]) + MAX_REST_S + 0.1
    assert all(0 <= rest_s <= MAX_REST_S for rest_s in service.rests)


def test_rests_grow_while_nothing_comes_and_shrink_when_something_does() -> None:
    """Idle waiting costs at most one look in a rest of two seconds; news makes it attentive again."""
    idle, waking = make_jobs([1_000, 1_000])
    service = Service({idle.job: 500.0, waking.job: 60.0})
    service.wait([idle, waking])
    before = [at_s for at_s, _ in service.looks if 30 < at_s < 60]
    assert len(before) <= 2 * 30 / (MAX_REST_S / 2) + 2
    woke = max(at_s for at_s, job in service.looks if job == waking.job)
    gap_s = min(at_s for at_s, _ in service.looks if at_s > woke) - woke
    assert gap_s <= MIN_REST_S + 0.01


def test_plenty_is_taken_without_rests() -> None:
    """While every look finds a result, there is no rest between rounds."""
    jobs = make_jobs([1_000] * (10 * ROUND_JOBS))
    service = Service(dict.fromkeys((job.job for job in jobs), 0.0))
    assert len(service.wait(jobs)) == len(jobs)
    assert set(service.rests) <= {0.0}


def test_a_crowd_of_hopeless_jobs_does_not_hide_the_others() -> None:
    """More jobs than a round holds, none of which will ever end, delay a ready one by their share of rounds only."""
    jobs = make_jobs([10_000] * (4 * ROUND_JOBS))
    service = Service({job.job: float("inf") for job in jobs} | {jobs[-1].job: 0.0})
    at_s, outcome = service.wait(jobs)[0]
    assert outcome.job == jobs[-1]
    assert len(service.looks) == len(set(service.looks)) == 4 * ROUND_JOBS or len(service.looks) >= 4 * ROUND_JOBS
    assert at_s <= 4 * MAX_REST_S


def test_the_rests_of_two_waits_differ() -> None:
    """Waits that begin together do not look together."""
    first, second = (Service({JOB.job: 300.0}) for _ in range(2))
    for service in (first, second):
        service.wait([JOB._replace(expires=1_000)])
    assert first.rests != second.rests


@given(
    ready=st.lists(st.floats(0, 100), min_size=1, max_size=100),
    heard=st.lists(st.floats(-5, 5) | st.none(), min_size=100, max_size=100),
)
def test_no_notice_makes_a_result_missed_or_wrong(ready: list[float], heard: list[float | None]) -> None:
    """Notices that come late, early, never, or of jobs that are not ready change when a job is looked at, not what."""
    jobs = make_jobs([1_000] * len(ready))
    announced = {job.job: at + off for job, at, off in zip(jobs, ready, heard, strict=False) if off is not None}
    service = Service({job.job: at for job, at in zip(jobs, ready, strict=True)}, announced)
    ended = service.wait(jobs)
    assert sorted(outcome.job.job for _, outcome in ended) == [job.job for job in jobs]
    for at_s, outcome in ended:
        assert outcome.state is State.OK
        ready_s = service.ready_at_s[outcome.job.job]
        assert ready_s <= at_s <= ready_s + MAX_ANNOUNCED_REST_S + 0.1


def test_an_announced_job_is_looked_at_at_once_and_alone() -> None:
    """Among many that wait, a notice costs one look; and once notices are heard, polls are rarer."""
    jobs = make_jobs([10_000] * (2 * ROUND_JOBS))
    service = Service({job.job: 50.0 + index for index, job in enumerate(jobs)})
    service.announces_at_s = {job: at_s + 0.01 for job, at_s in service.ready_at_s.items()}
    ended = service.wait(jobs)
    assert all(at_s - service.ready_at_s[outcome.job.job] < 0.2 for at_s, outcome in ended)
    while_told = [at_s for at_s, _ in service.looks if at_s > 55]
    # Each job once by its notice; beside these a round of polls every five seconds at the most.
    polls = (50 + len(jobs) - 55) / (MAX_ANNOUNCED_REST_S / 2)
    assert len(while_told) <= len(jobs) + (polls + 2) * ROUND_JOBS


def test_an_error_of_the_store_ends_the_wait() -> None:
    """What looking raises is raised; nothing is reported about jobs that were not seen."""

    def look(_: Sequence[SubmittedJob]) -> list[Outcome | None]:
        raise StoreUnavailable("object store does not answer")

    with pytest.raises(StoreUnavailable):
        next(wait_for(LookSchedule([JOB], deadline_s=1), look, now=lambda: 0.0, rest=lambda _: ()))


def test_waiting_for_nothing_ends_at_once() -> None:
    """No jobs, no looks."""
    service = Service({})
    assert service.wait([]) == []
    assert service.looks == []
