"""The check that every fault test ends with: nothing lost, nothing doubled, nothing changed, and a good job served."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from mrgc import errors
from mrgc.results import object_name
from tests.faults.workload import TENANTS, Sent, Workload, right_answers
from tests.waiting import until

SETTLE_S: Final = 180.0
SERVE_S: Final = 60.0
CODES: Final = frozenset(
    each.code for each in vars(errors).values() if isinstance(each, type) and hasattr(each, "code")
)


@dataclass(slots=True)
class Verdict:
    """What became of the jobs of one workload."""

    served: int = 0
    dead: dict[bytes, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def ensure_settled(
    work: Workload, *, dead: Collection[bytes] = (), reason: str = "", within_s: float = SETTLE_S
) -> None:
    """Demand one unchanged, right result object or one dead letter with a reason of every job, then serve one more.

    Args:
        work: the jobs.
        dead: those that must be dead letters, by job id, all with `reason`; every other one must have a result.
        reason: code of mrgc.errors.
        within_s: how long the queues may take to run empty.
    """
    stack = work.stack
    stack.wait_ready()
    until(lambda: not any(map(stack.broker.waiting, TENANTS)), within_s=within_s, what="the queues are empty")
    verdict = judge(work)
    stack.tally.settle(
        stack.source,
        jobs=len(work.sent),
        served=verdict.served,
        dead_lettered=len(verdict.dead),
        lost=len(verdict.lost),
        doubled=len(verdict.doubled),
    )
    assert (verdict.lost, verdict.doubled, verdict.wrong) == ([], [], [])
    assert verdict.dead == dict.fromkeys(dead, reason)
    assert [stack.broker.leftovers(tenant) for tenant in TENANTS] == [[], []]
    ensure_a_good_job_succeeds(work)


def judge(work: Workload) -> Verdict:
    """Compare every job with what lies in the store and among the dead letters."""
    verdict = Verdict()
    objects, changed = work.stack.results.objects(), work.stack.results.changed()
    counts = Counter(name.split("/")[1] for name in objects)
    letters = Counter(letter for tenant in TENANTS for letter in work.stack.broker.dead_letters(tenant))
    reasons = {letter.job: letter.reason for letter in letters}
    dead = Counter(letter.job for letter in letters.elements())
    for sent in work.sent.values():
        name = object_name(sent.job)
        ends = counts[sent.job.id] + dead[sent.sealed]
        if ends == 0:
            verdict.lost.append(name)
        elif ends > 1 or name in changed:
            verdict.doubled.append(name)
        elif dead[sent.sealed]:
            verdict.dead[sent.job.job] = reasons[sent.sealed]
        elif is_right(work, sent, objects.get(name, b"")):
            verdict.served += 1
        else:
            verdict.wrong.append(name)
    verdict.wrong += [f"{code} is no reason" for code in set(verdict.dead.values()) - CODES]
    return verdict


def is_right(work: Workload, sent: Sent, data: bytes) -> bool:
    """Open a result as its tenant does, and compare its embeddings with those computed here."""
    result = work.client(sent.job.tenant).open(data, job=sent.job)
    if result.status != "ok":
        return False
    found = np.asarray(result.json()["embeddings"], dtype=np.float32)
    expected = right_answers(work.stack.models)[list(sent.texts)] if sent.texts else found
    return found.shape == expected.shape and bool(np.allclose(found, expected, atol=1e-5))


def ensure_a_good_job_succeeds(work: Workload) -> None:
    """Send one more job and demand its right result."""
    (good,) = work.add(1)
    name = object_name(good.job)
    until(lambda: name in work.stack.results.names(), within_s=SERVE_S, what="a good job is served")
    assert is_right(work, good, work.stack.results.objects()[name])
