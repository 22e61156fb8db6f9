"""One token batch through a model: outcomes per row, whatever the device does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from mrgc.errors import DeviceOutOfMemory, ModelError
from worker.engine.forwarding import forward
from worker.engine.jobs import Batch, Job, Row
from worker.models.answers import EmbeddingAnswer
from worker.models.base import Answer, Ids, Outputs, Tokens


class SmallDevice:
    """A model whose device holds few tokens, and which gives each row its first id as its embedding."""

    name, digest, dimensions, max_tokens, vocabulary = "small", "0" * 64, 1, 8, 0

    def __init__(self, most_tokens: int) -> None:
        self.most_tokens = most_tokens
        self.sizes: list[int] = []

    def answer(self, items: int, parameters: Mapping[str, object]) -> Answer:
        assert not parameters
        return EmbeddingAnswer(items, self.dimensions)

    def tokenise(self, inputs: Sequence[object]) -> list[Tokens | ModelError]:
        raise NotImplementedError

    def forward(self, rows: Sequence[Ids]) -> Outputs:
        self.sizes.append(len(rows))
        if sum(map(len, rows)) > self.most_tokens:
            raise DeviceOutOfMemory("no room")
        return np.array([[np.nan if row[0] == 0 else row[0]] for row in rows], dtype=np.float32)


def batch_of(*rows: list[int]) -> tuple[Batch, Job, list[Row]]:
    """Put rows of ids into one job of one batch."""
    answer = EmbeddingAnswer(len(rows), 1)
    job = Job(memoryview(b""), None, answer=answer, items=len(rows))  # type: ignore[arg-type]  # nobody looks at None
    batch = Batch([], lambda _: None, jobs=[job], pending_rows=len(rows))
    return batch, job, [Row(batch, job, answer, place, np.array(ids, dtype=np.int32)) for place, ids in enumerate(rows)]


def embeddings(job: Job) -> list[float]:
    """The first number of each embedding."""
    assert job.answer is not None
    return [float(number) for number in job.answer.tensors().arrays["embeddings"][:, 0]]


def test_a_batch_that_does_not_fit_is_run_in_halves() -> None:
    """Every row that fits alone is served."""
    batch, job, rows = batch_of([1, 1], [2, 2], [3, 3], [4, 4], [5, 5])
    model = SmallDevice(most_tokens=4)
    assert forward(model, rows) == [batch]
    assert embeddings(job) == [1, 2, 3, 4, 5]
    assert job.errors == {}
    assert model.sizes[0] == 5
    assert max(model.sizes[1:]) < 5


def test_a_row_that_does_not_fit_alone_fails_alone() -> None:
    """One long text does not take its batch mates with it."""
    _, job, rows = batch_of([1], [2] * 6, [3])
    forward(SmallDevice(most_tokens=4), rows)
    assert {place: error.code for place, error in job.errors.items()} == {1: "out_of_memory"}
    assert embeddings(job) == [1, 0, 3]


def test_a_row_without_a_finite_embedding_fails_alone() -> None:
    """NaN is neither JSON nor an answer."""
    _, job, rows = batch_of([1], [0], [3])
    forward(SmallDevice(most_tokens=9), rows)
    assert {place: error.code for place, error in job.errors.items()} == {1: "model"}
    assert embeddings(job) == [1, 0, 3]


def test_an_output_in_pieces_is_handed_on_piece_by_piece_and_zeroed() -> None:
    """A model that answers some inputs at greater length returns a list; each output is judged on its own."""

    class Pieces(SmallDevice):
        def forward(self, rows: Sequence[Ids]) -> Outputs:
            self.outputs = [np.full(1, np.inf if row[0] == 0 else row[0], dtype=np.float32) for row in rows]
            return list(self.outputs)

    _, job, rows = batch_of([1], [0], [3])
    model = Pieces(most_tokens=9)
    forward(model, rows)
    assert embeddings(job) == [1, 0, 3]
    assert {place: error.code for place, error in job.errors.items()} == {1: "model"}
    assert not any(output.any() for output in model.outputs)


def test_what_a_job_needs_beside_its_inputs_fails_the_job() -> None:
    """Places behind the inputs are the answer's extras: without them no input has an answer."""
    _, job, rows = batch_of([1], [0], [3])
    job.items = 1
    forward(SmallDevice(most_tokens=9), rows)
    assert (job.errors, job.failure) == ({}, "model")


def test_a_batch_is_finished_with_its_last_row() -> None:
    """A job batch may take several token batches."""
    batch, _, rows = batch_of([1], [2], [3])
    model = SmallDevice(most_tokens=9)
    assert forward(model, rows[:2]) == []
    assert forward(model, rows[2:]) == [batch]


def test_ids_are_zeroed_after_their_forward_pass() -> None:
    """Ids are the text in another alphabet."""
    _, _, rows = batch_of([1, 2], [3])
    forward(SmallDevice(most_tokens=9), rows)
    assert not any(row.ids.any() for row in rows)


def test_a_fault_of_the_device_is_not_swallowed() -> None:
    """The process has to end; the intake runs its jobs again."""

    class Faulty(SmallDevice):
        def forward(self, rows: Sequence[Ids]) -> Outputs:
            raise RuntimeError(f"device-side assert in {len(rows)} rows")

    _, _, rows = batch_of([1])
    with pytest.raises(RuntimeError):
        forward(Faulty(9), rows)
