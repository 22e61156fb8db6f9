"""A job that kills the engine, in a full batch of good ones."""

from __future__ import annotations

import pytest

from tests.faults.fragile_engine import DEADLY_TEXT
from tests.faults.stack import BATCH_JOBS
from tests.faults.verdict import ensure_settled
from tests.faults.workload import Workload

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]


def test_a_poison_job_in_a_full_batch_is_the_only_dead_letter(work: Workload) -> None:
    """The engine dies of one job until that job was alone at two deaths; its batch mates are served."""
    mates = [work.seal("acme") for _ in range(2 * BATCH_JOBS - 1)]
    poison = work.seal("acme", texts=[DEADLY_TEXT])
    work.send([*mates[:BATCH_JOBS], poison, *mates[BATCH_JOBS:]])
    ensure_settled(work, dead=[poison.job.job], reason="poison", within_s=300)
