"""The embedder for a device of its own queues, on a CPU: the members that an engine asks, and free device memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from infra import tiny_model
from mrgc.errors import ConfigError, DeviceOutOfMemory
from tests.models.test_families import KINDS
from worker.models.base import Model, Tokens
from worker.models.cuda_embedder import CudaEmbedder
from worker.models.cuda_memory import Span, free_spans
from worker.models.embedder import TextEmbedder
from worker.models.folder import survey
from worker.models.overlap import Overlapping

CPU = torch.device("cpu")


@pytest.fixture
def embedder(tiny_folder: Path) -> CudaEmbedder:
    """The tiny model for batches of up to 512 tokens."""
    made = CudaEmbedder(survey(tiny_folder / tiny_model.NAME), device=CPU, dtype=torch.float32)
    made.warm_up(512)
    return made


def test_it_answers_as_the_embedder_of_the_cpu_does(embedder: CudaEmbedder, tiny: Model, texts: list[str]) -> None:
    """Another way through the encoder, the same embeddings, at once or in two steps."""
    assert isinstance(embedder, Overlapping)
    assert (embedder.name, embedder.digest) == (tiny.name, tiny.digest)
    rows = [tokens.ids for tokens in embedder.tokenise(texts[:8]) if isinstance(tokens, Tokens)][:4]
    expected = np.asarray(tiny.forward(rows))
    assert np.abs(np.asarray(embedder.forward(rows)) - expected).max() < 1e-5
    assert np.abs(np.asarray(embedder.launch(rows).collect()) - expected).max() < 1e-5
    embedder.scrub()


@pytest.mark.parametrize("name", KINDS)
def test_every_architecture_pooling_and_head_goes_this_way_too(tmp_path: Path, name: str) -> None:
    """Scores of texts and of tokens, positions of RoBERTa, the first token's state: as the CPU's encoder gives them."""
    folder = tiny_model.write(tmp_path, name=name, kind=KINDS[name])
    generator = np.random.default_rng(5)
    rows = [generator.integers(3, 40, length, dtype=np.int32) for length in (1, 20, 7, 20, 64)]
    expected = TextEmbedder(survey(folder), device=CPU, dtype=torch.float32).forward(rows)
    made = CudaEmbedder(survey(folder), device=CPU, dtype=torch.float32)
    made.warm_up(512)
    for found, wanted in zip(made.launch(rows).collect(), expected, strict=True):
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() < 1e-5


def test_an_embedder_of_the_cpu_has_nothing_in_flight(tiny: Model) -> None:
    """The engine runs it one batch at a time, and its own allocator erases what it frees."""
    assert not isinstance(tiny, Overlapping)


def test_out_of_memory_has_one_name(embedder: CudaEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever torch calls it, the engine halves the batch."""

    def compute(_batch: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(embedder.runner, "_compute", compute)
    with pytest.raises(DeviceOutOfMemory):
        embedder.launch([np.ones(3, dtype=np.int32)])


def test_weights_that_give_no_numbers_are_refused_before_the_first_tenant(tiny_folder: Path) -> None:
    """As on a CPU, at the start of the engine."""
    made = CudaEmbedder(survey(tiny_folder / tiny_model.NAME), device=CPU, dtype=torch.float32)
    made._weights.words.fill_(float("nan"))
    with pytest.raises(ConfigError):
        made.warm_up(512)


def test_free_memory_is_every_inactive_block_of_the_device() -> None:
    """Blocks lie one after another in their segment; those in use, and other devices, are left alone."""
    states = ["active_allocated", "inactive", "active_awaiting_free", "inactive"]
    blocks = [{"state": state, "size": 512 * (place + 1)} for place, state in enumerate(states)]
    segments = [
        {"device": 0, "address": 0x1000, "blocks": blocks},
        {"device": 1, "address": 0x9000, "blocks": blocks},
        {"device": 0, "address": 0x100000, "blocks": blocks[1:2]},
    ]
    assert list(free_spans(segments, 0)) == [
        Span(0x1000 + 512, 1024),
        Span(0x1000 + 512 + 1024 + 1536, 2048),
        Span(0x100000, 1024),
    ]
    described = Span(0x1000, 1024).__cuda_array_interface__
    assert described == {"shape": (1024,), "typestr": "|u1", "data": (0x1000, False), "version": 3}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_a_batch_left_on_the_device_is_overwritten(tiny_folder: Path) -> None:
    """A tensor that was freed holds zeros after a scrub."""
    device = torch.device("cuda:0")
    embedder = CudaEmbedder(survey(tiny_folder / tiny_model.NAME), device=device, dtype=torch.bfloat16)
    embedder.warm_up(8_192)
    with torch.cuda.stream(embedder.runner.stream):
        left = torch.full((1 << 20,), 7, dtype=torch.int32, device=device)
    address = left.data_ptr()
    del left
    embedder.scrub()
    assert not torch.as_tensor(Span(address, 4 << 20), device=device).any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 0.99999), (torch.bfloat16, 0.995)])
def test_a_device_computes_what_the_cpu_does(tiny_folder: Path, tiny: Model, dtype: torch.dtype, least: float) -> None:
    """Padded classes in float32, flash attention in bfloat16."""
    device = torch.device("cuda:0")
    embedder = CudaEmbedder(survey(tiny_folder / tiny_model.NAME), device=device, dtype=dtype)
    embedder.warm_up(8_192)
    generator = np.random.default_rng(3)
    rows = [generator.integers(1, 90, length, dtype=np.int32) for length in (1, 2, 33, 64, 128, 7)]
    flights = [embedder.launch(rows) for _ in range(2)]
    for flight in flights:
        assert (np.asarray(flight.collect()) * np.asarray(tiny.forward(rows))).sum(axis=1).min() > least
