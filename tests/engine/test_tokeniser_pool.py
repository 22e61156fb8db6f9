"""Tokenisers in processes: the same outcomes as in one process, deaths that no job notices, and what is left behind."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra import process_memory
from mrgc.errors import ModelError
from tests.engine.host import MODEL
from tests.waiting import until
from worker.engine.tokeniser_pool import LEAST_TEXTS, TokeniserPool, derive_processes, shares
from worker.models.base import Model, Tokens
from worker.models.registry import Registry

PROCESSES = 2


class Pool:
    """A pool with its model, and how often a process died."""

    def __init__(self, model: Model, processes: int = PROCESSES) -> None:
        self.model = model
        self.deaths = 0
        self.pool = TokeniserPool([model], processes=processes, on_death=self._count)

    def _count(self) -> None:
        self.deaths += 1

    def tokenise(self, inputs: list[object]) -> list[object]:
        """Outcomes as plain values."""
        return plain(self.pool.tokenise(self.model, inputs))


def plain(outcomes: list[Tokens | ModelError]) -> list[object]:
    """Turn outcomes into what can be compared."""
    return [
        (outcome.ids.tolist(), outcome.is_cut) if isinstance(outcome, Tokens) else outcome.code for outcome in outcomes
    ]


@pytest.fixture(scope="module")
def model(served: Registry) -> Model:
    """The tiny model, which also tokenises by itself."""
    return served.find(MODEL)


@pytest.fixture(scope="module")
def calm(model: Model) -> Iterator[Pool]:
    """A pool for tests that leave its processes alone."""
    made = Pool(model)
    yield made
    made.pool.close()


@pytest.fixture
def pool(model: Model) -> Iterator[Pool]:
    """A pool for tests that hurt its processes."""
    made = Pool(model)
    yield made
    made.pool.close()


def inputs_of(count: int) -> list[object]:
    """Texts of every kind, and inputs that are none, in one order."""
    odd: list[object] = ["", None, 7, "\ud800 lone", "word " * 500, "NUL \0 inside", ["list"], "naïve café 你好", b"x"]
    return [odd[place % 17] if place % 17 < len(odd) else f"text number {place}" for place in range(count)]


@pytest.mark.parametrize("count", [1, LEAST_TEXTS, 3 * LEAST_TEXTS, 500])
def test_outcomes_are_those_of_the_model_itself(calm: Pool, count: int) -> None:
    """Ids, cuts, per-input errors and their order do not depend on who tokenises."""
    inputs = inputs_of(count)
    assert calm.tokenise(inputs) == plain(calm.model.tokenise(inputs))
    assert calm.deaths == 0


def test_a_model_without_a_recipe_tokenises_by_itself(calm: Pool) -> None:
    """One's own models need not know of processes."""

    class Own:
        name = "own"

        def tokenise(self, inputs: list[object]) -> list[ModelError]:
            return [ModelError(str(number)) for number in range(len(inputs))]

    found = calm.pool.tokenise(Own(), ["text"] * 100)  # type: ignore[arg-type]  # the members that the pool asks
    assert [str(error) for error in found] == [str(number) for number in range(100)]


def test_a_killed_process_loses_no_input_and_is_replaced(pool: Pool) -> None:
    """Its share is tokenised again by the engine, and a new process takes its place."""
    inputs = inputs_of(200)
    expected = plain(pool.model.tokenise(inputs))
    before = pool.pool.pids
    os.kill(before[0], signal.SIGKILL)
    assert pool.tokenise(inputs) == expected
    assert pool.deaths == 1
    until(lambda: pool.tokenise(inputs) == expected and pool.pool.pids != before, within_s=30, what="a new process")
    until(lambda: served_by_all(pool, inputs), within_s=30, what="the new process takes its share")
    assert pool.deaths == 1


def served_by_all(pool: Pool, inputs: list[object]) -> bool:
    """Tell whether every process uses CPU time for a request: it has become part of the pool."""
    before = [cpu_ticks(pid) for pid in pool.pool.pids]
    for _ in range(20):
        pool.tokenise(inputs * 5)
    return all(cpu_ticks(pid) > spent for pid, spent in zip(pool.pool.pids, before, strict=True))


def cpu_ticks(pid: int) -> int:
    """CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_process_killed_in_the_middle_of_a_request_loses_no_input(pool: Pool) -> None:
    """Whatever it had read or answered by then, every input has its one outcome."""
    inputs: list[object] = [f"{place} " + "some words of text " * 40 for place in range(3_000)]
    expected = plain(pool.model.tokenise(inputs))
    stopped = pool.pool.pids[1]
    os.kill(stopped, signal.SIGSTOP)
    found: list[object] = []
    asking = threading.Thread(target=lambda: found.extend(pool.tokenise(inputs)))
    asking.start()
    until(lambda: cpu_ticks(pool.pool.pids[0]) > 0 and asking.is_alive(), within_s=20, what="the request is under way")
    os.kill(stopped, signal.SIGKILL)
    asking.join(50)
    assert found == expected
    assert pool.deaths == 1


def test_every_process_dead_is_the_engine_alone(pool: Pool) -> None:
    """The pool is for speed; without it the engine serves."""
    for pid in pool.pool.pids:
        os.kill(pid, signal.SIGKILL)
    inputs = inputs_of(100)
    assert pool.tokenise(inputs) == plain(pool.model.tokenise(inputs))
    assert pool.deaths == PROCESSES


def test_processes_end_with_the_pool(model: Model) -> None:
    """Nothing that held a text outlives the engine."""
    pool = Pool(model)
    pids = pool.pool.pids
    pool.pool.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_process_is_hardened_and_has_no_way_out(calm: Pool) -> None:
    """Statement 8: no core, undumpable, one socket, deaf to the signals that tell a service to stop."""
    for pid in calm.pool.pids:
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
        assert process_memory.inet_sockets(pid) == []
        status = Path(f"/proc/{pid}/status").read_text()
        ignored = int(re.search(r"^SigIgn:\s+([0-9a-f]+)$", status, re.MULTILINE)[1], 16)  # type: ignore[index]
        assert all(ignored & 1 << number - 1 for number in (signal.SIGTERM, signal.SIGINT))
        # /proc/PID/mem of an undumpable process is root's, whoever runs it.
        assert Path(f"/proc/{pid}/mem").stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may read the memory of an undumpable process")
@pytest.mark.parametrize("words", [0, 10, 2_000])
def test_texts_do_not_outlive_their_request(calm: Pool, words: int) -> None:
    """Once it is answered, a tokeniser's memory holds neither the text nor its ids."""
    canary = f"canary{os.urandom(12).hex()}"
    inputs: list[object] = [f"{place} {canary} " + "ordinary words " * words for place in range(64)]
    outcomes = calm.pool.tokenise(calm.model, inputs)
    assert isinstance(outcomes[0], Tokens)
    ids = outcomes[0].ids[4:28].tobytes()
    until(
        lambda: not any(process_memory.find(pid, [canary.encode(), ids]) for pid in calm.pool.pids),
        within_s=10,
        what="nothing is left",
    )


@given(sizes=st.lists(st.integers(0, 10_000), max_size=300), processes=st.integers(0, 12))
def test_shares_cover_every_text_once_in_order(sizes: list[int], processes: int) -> None:
    """Consecutive, none empty, at most one per process."""
    cut = shares(sizes, processes)
    assert [place for share in cut for place in range(len(sizes))[share]] == list(range(len(sizes)))
    assert all(share.stop > share.start for share in cut)
    assert len(cut) <= max(1, processes)


def test_shares_are_of_like_size() -> None:
    """One long text among short ones does not leave the other processes idle."""
    sizes = [10_000, *[100] * 99, 10_000]
    assert [sum(sizes[share]) for share in shares(sizes, 3)] == [10_000, 9_900, 10_000]


def test_processes_are_derived_from_what_a_host_has() -> None:
    """None where the cores are the device; on a GPU host, each engine's cores less those that others need."""
    assert derive_processes(cores=64, devices=0) == 0
    assert derive_processes(cores=16, devices=1) == 12
    assert derive_processes(cores=192, devices=8) == 20
    assert derive_processes(cores=4, devices=1) == 0
