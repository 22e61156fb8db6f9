"""The packed encoder: the reference's numbers, and the same bits whoever the batch mates are."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from worker.models import registry
from worker.models.base import Embeddings, Ids, Model, Tokens
from worker.models.bert import pack
from worker.models.fetch_minilm import package_folder
from worker.models.heads import MIN_TOKENS

#: Importing the oracle takes half a minute on a busy machine.
ORACLE = pytest.mark.timeout(180)


def rows_of(model: Model, texts: Sequence[str]) -> list[Ids]:
    """Tokenise texts, the over-long ones cut."""
    outcomes = model.tokenise(texts)
    assert all(isinstance(outcome, Tokens) for outcome in outcomes)
    return [outcome.ids for outcome in outcomes if isinstance(outcome, Tokens)]


def forward(model: Model, rows: Sequence[Ids]) -> Embeddings:
    """Run one token batch of a model that answers with embeddings."""
    return np.asarray(model.forward(rows))


@pytest.fixture(scope="module")
def reference(texts: list[str]) -> Embeddings:
    """What sentence-transformers computes for the texts, from the folder as its publishers laid it out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sentence_transformers = pytest.importorskip("sentence_transformers")
        oracle = sentence_transformers.SentenceTransformer(str(package_folder()), device="cpu")
        return np.asarray(oracle.encode(texts, normalize_embeddings=True, show_progress_bar=False))


@ORACLE
def test_float32_equals_sentence_transformers(minilm: Model, texts: list[str], reference: Embeddings) -> None:
    """Packed float32 embeddings of MiniLM differ from the reference by rounding only."""
    embeddings = forward(minilm, rows_of(minilm, texts))
    assert np.abs(embeddings - reference).max() <= 1e-5


@ORACLE
def test_bfloat16_points_where_the_reference_points(
    minilm_folder: Path, texts: list[str], reference: Embeddings
) -> None:
    """Half the bits cost less than a thousandth of the cosine, for every single text."""
    model = registry.load(minilm_folder, device="cpu", dtype="bf16").find("all-minilm-l6-v2")
    # Emulated where the CPU has no bfloat16, hence few texts.
    embeddings = forward(model, rows_of(model, texts[::2]))
    assert (embeddings * reference[::2]).sum(axis=1).min() >= 0.999


@pytest.mark.timeout(180)
def test_minilm_gives_the_same_bits_in_any_company(minilm: Model, texts: list[str]) -> None:
    """A tenant's embedding does not depend on who else had jobs at that moment."""
    ensure_independent(minilm, rows_of(minilm, texts), compositions=20)


def test_the_tiny_model_gives_the_same_bits_in_any_company(tiny: Model, texts: list[str]) -> None:
    """The same holds for another width, and over many more compositions."""
    ensure_independent(tiny, rows_of(tiny, texts), compositions=150)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_leaves_the_bits_as_they_are(
    minilm_folder: Path, minilm: Model, texts: list[str], threads: int
) -> None:
    """Two hosts with one model give one answer, whatever processors they have."""
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,)) as starter:
        other = starter.submit(registry.load, minilm_folder, device="cpu", dtype="fp32").result()
    rows = rows_of(minilm, texts)
    mine, others = (np.asarray(model.forward(rows)) for model in (minilm, other.find("all-minilm-l6-v2")))
    assert mine.tobytes() == others.tobytes()


def ensure_independent(model: Model, rows: list[Ids], *, compositions: int) -> None:
    """Run every row alone, then in seeded random company, short rows more often than their share."""
    alone = [next(iter(model.forward([row]))) for row in rows]
    draw = random.Random(20)
    shortest = sorted(range(len(rows)), key=lambda place: len(rows[place]))[:6]
    for _ in range(compositions):
        places = [
            draw.choice(shortest) if draw.random() < 0.5 else draw.randrange(len(rows))
            for _ in range(draw.choice([1, 2, 3, 5, 8, 13]))
        ]
        together = list(model.forward([rows[place] for place in places]))
        for place, embedding in zip(places, together, strict=True):
            assert embedding.tobytes() == alone[place].tobytes(), f"row of {len(rows[place])} tokens among {places}"


def test_embeddings_are_unit_vectors_in_the_order_of_the_rows(tiny: Model) -> None:
    """Sorting by length inside a batch is not visible from outside."""
    rows = rows_of(tiny, ["a much longer text than the others, to be sorted to the end", "short", "", "two words"])
    embeddings = forward(tiny, rows)
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    assert embeddings.dtype == np.float32
    backwards = forward(tiny, rows[::-1])
    assert (backwards[::-1] == embeddings).all()


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=20)


@given(lengths=LENGTHS)
def test_a_packed_batch_holds_every_row_once_in_groups_of_equal_length(lengths: list[int]) -> None:
    """Groups tile the batch from its start; each row is found where its group says, with positions from zero."""
    rows = [np.full(length, place, dtype=np.int32) for place, length in enumerate(lengths)]
    packed = pack(rows)
    found: list[NDArray[np.int32]] = []
    end = 0
    for group in packed.groups:
        assert group.span.start == end
        end = group.span.stop
        found.extend(packed.ids[group.span].reshape(group.rows, group.length))
        assert (packed.positions[group.span].reshape(group.rows, group.length) == np.arange(group.length)).all()
    assert end == sum(lengths)
    assert len({group.length for group in packed.groups}) == len(packed.groups)
    for place, row in zip(packed.order, found, strict=True):
        assert row.tolist() == rows[place].tolist()


@given(lengths=LENGTHS)
def test_a_packed_batch_has_at_least_sixteen_tokens(lengths: list[int]) -> None:
    """Smaller matrices would take other kernels, whose last bits differ; a larger batch gets no filler."""
    packed = pack([np.ones(length, dtype=np.int32) for length in lengths])
    assert len(packed.ids) == len(packed.positions) == max(MIN_TOKENS, sum(lengths))
