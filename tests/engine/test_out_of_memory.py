"""Allocations that fail for real: token batches are halved, inputs that do not fit alone fail alone."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch

from infra import tiny_model
from worker.engine.forwarding import forward
from worker.engine.jobs import Batch, Job, Row
from worker.models import registry
from worker.models.base import Embeddings, Ids, Tokens
from worker.models.bert import BertEncoder
from worker.models.embedder import TextEmbedder

#: More than any machine has.
IMPOSSIBLE_BYTES: Final = 1 << 60


class Greedy:
    """An encoder that asks torch for an impossible tensor when a batch is over its tokens, and else does its work."""

    def __init__(self, encoder: BertEncoder, most_tokens: int) -> None:
        self._encoder = encoder
        self._most_tokens = most_tokens
        self.held: list[weakref.ref[torch.Tensor]] = []
        self.held_during_a_retry = False

    def embed(self, rows: Sequence[Ids]) -> Embeddings:
        self.held_during_a_retry |= any(reference() is not None for reference in self.held)
        intermediate = torch.zeros(1024)
        self.held.append(weakref.ref(intermediate))
        if sum(map(len, rows)) > self._most_tokens:
            intermediate = torch.empty(IMPOSSIBLE_BYTES, dtype=torch.uint8)
        return self._encoder.embed(rows)


@pytest.fixture
def model(models: Path) -> TextEmbedder:
    """The tiny model, loaded for this test alone."""
    found = registry.load(models, device="cpu", dtype="fp32").find(tiny_model.NAME)
    assert isinstance(found, TextEmbedder)
    return found


def run(model: TextEmbedder, texts: list[str]) -> tuple[list[list[float]], dict[int, str]]:
    """Run one job's texts as one token batch; return its rows and the codes of its errors."""
    answer = model.answer(len(texts), {})
    job = Job(memoryview(b""), None, answer=answer, items=len(texts))  # type: ignore[arg-type]  # nobody looks at None
    batch = Batch([], lambda _: None, jobs=[job], pending_rows=len(texts))
    tokens = [outcome for outcome in model.tokenise(texts) if isinstance(outcome, Tokens)]
    rows = [Row(batch, job, answer, place, outcome.ids) for place, outcome in enumerate(tokens)]
    assert forward(model, rows) == [batch]
    matrix = answer.tensors().arrays.get("embeddings", np.zeros((0, 0)))
    return matrix.tolist(), {place: error.code for place, error in job.errors.items()}


TEXTS: Final = ["the file", "return the value of the string", "of " * 60, "in", "the object is in the line"]


def test_a_batch_that_torch_cannot_allocate_is_halved_with_the_same_bits(model: TextEmbedder) -> None:
    """Torch's own failure of an allocation costs time, and no answer changes."""
    expected, _ = run(model, TEXTS)
    greedy = Greedy(model._encoder, most_tokens=70)
    model._encoder = greedy  # type: ignore[assignment]
    assert run(model, TEXTS) == (expected, {})
    assert len(greedy.held) > 2


def test_an_input_that_torch_cannot_allocate_alone_fails_alone(model: TextEmbedder) -> None:
    """The long text gets out_of_memory; its batch mates get their answers."""
    expected, _ = run(model, TEXTS)
    model._encoder = Greedy(model._encoder, most_tokens=40)  # type: ignore[assignment]
    found, codes = run(model, TEXTS)
    assert codes == {2: "out_of_memory"}
    assert found == [row if place != 2 else [0.0] * len(row) for place, row in enumerate(expected)]


def test_what_a_failed_attempt_held_is_free_before_the_next(model: TextEmbedder) -> None:
    """A retry beside the tensors of the attempt that it replaces would not fit either."""
    greedy = Greedy(model._encoder, most_tokens=40)
    model._encoder = greedy  # type: ignore[assignment]
    run(model, TEXTS)
    assert len(greedy.held) > 2
    assert not greedy.held_during_a_retry
