"""The device path on a CPU: the same numbers as the CPU's encoder, the ring of slots, what is left in its buffers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from infra import tiny_model
from worker.models import cuda_layout
from worker.models.base import Embeddings, Ids
from worker.models.bert import BertEncoder
from worker.models.bert_weights import BertConfig, BertWeights, load_weights
from worker.models.cuda_attention import DeviceBatch, attend_padded, has_flash
from worker.models.cuda_encoder import DeviceEncoder, pool_mean
from worker.models.cuda_runner import DeviceRunner, Flight
from worker.models.cuda_slots import SLOTS, Ring, Slot
from worker.models.heads import unit_vectors
from worker.models.manifest import CONFIG, WEIGHTS

CPU = torch.device("cpu")
BUDGET = 1_000


@pytest.fixture(scope="module")
def parts(tiny_folder: Path) -> tuple[BertConfig, BertWeights]:
    """Configuration and float32 weights of the tiny model."""
    folder = tiny_folder / tiny_model.NAME
    config = BertConfig.parse((folder / CONFIG).read_bytes())
    data = (folder / WEIGHTS).read_bytes()
    return config, load_weights(data, config, stored="float32", device=CPU, dtype=torch.float32)


class Watched(DeviceRunner):
    """A runner whose slots a test can look into."""

    def __init__(self, config: BertConfig, weights: BertWeights) -> None:
        encoder = DeviceEncoder(config, weights, attend_padded)
        self.failing: Exception | None = None

        def compute(batch: DeviceBatch) -> Tensor:
            if self.failing is not None:
                raise self.failing
            return unit_vectors(pool_mean(encoder.encode(batch), batch))

        width, longest = config.hidden_size, tiny_model.MAX_TOKENS
        super().__init__(compute, CPU, budget_tokens=BUDGET, width=width, longest=longest, pads=True)
        self.slots: list[Slot] = list(self._ring._free)

    def remains(self) -> list[Tensor]:
        """Every buffer of every slot that is not all zeros."""
        buffers = [getattr(slot, f"_{side}") for slot in self.slots for side in BUFFERS]
        return [buffer for buffer in buffers if buffer.any()]


BUFFERS = ("host_in", "device_in", "host_out", "device_out")


@pytest.fixture
def runner(parts: tuple[BertConfig, BertWeights]) -> Watched:
    """The tiny model behind a runner on the CPU."""
    return Watched(*parts)


def rows_of(*lengths: int, seed: int = 1) -> list[Ids]:
    """Draw rows of these lengths."""
    generator = np.random.default_rng(seed)
    return [generator.integers(1, 90, length, dtype=np.int32) for length in lengths]


@pytest.mark.parametrize("lengths", [(1,), (2, 3), (128,) * 7, (1, 128, 64, 65, 63, 1, 7), tuple(range(1, 43))])
def test_it_computes_what_the_encoder_of_the_cpu_does(
    runner: Watched, parts: tuple[BertConfig, BertWeights], lengths: tuple[int, ...]
) -> None:
    """Padded classes and buckets change no number by more than rounding."""
    rows = rows_of(*lengths)
    found, expected = runner.launch(rows).collect(), BertEncoder(*parts).embed(rows)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-5


def test_a_row_has_the_same_bits_whatever_lies_beside_it_in_a_bucket(runner: Watched) -> None:
    """Shapes are those of the bucket, so batch mates choose no other kernels."""
    (row,) = rows_of(33)
    alone = runner.launch([row]).collect()
    company = runner.launch([*rows_of(40, 50, 60), row, *rows_of(40)]).collect()
    assert np.abs(alone[0] - company[3]).max() < 1e-6


def test_several_batches_are_in_flight_and_come_back_in_order(runner: Watched) -> None:
    """A slot is reused only after its batch was collected, so no batch sees another's rows."""
    batches = [rows_of(5, 6, 7, seed=seed) for seed in range(4 * SLOTS)]
    expected = [runner.launch(batch).collect() for batch in batches]
    flights: list[Flight] = []
    found: list[Embeddings] = []
    for batch in batches:
        if len(flights) == SLOTS:
            found.append(flights.pop(0).collect())
        flights.append(runner.launch(batch))
    found += [flight.collect() for flight in flights]
    assert [rows.tobytes() for rows in found] == [rows.tobytes() for rows in expected]


def test_more_in_flight_than_slots_is_refused(runner: Watched) -> None:
    """The ring would otherwise overwrite a batch that the device is reading."""
    flights = [runner.launch(rows_of(3)) for _ in range(SLOTS)]
    with pytest.raises(RuntimeError, match="more batches in flight"):
        runner.launch(rows_of(3))
    for flight in flights:
        flight.collect()
    runner.launch(rows_of(3)).collect()


def test_collecting_out_of_order_is_refused(runner: Watched) -> None:
    """Results leave in the order in which batches came."""
    first, second = runner.launch(rows_of(3)), runner.launch(rows_of(4))
    with pytest.raises(RuntimeError, match="in the order of their launch"):
        second.collect()
    assert len(first.collect()) == 1


def test_a_batch_leaves_nothing_in_its_buffers(runner: Watched) -> None:
    """Ids and rows are zeroed on both sides, however large the batches before were."""
    launched = [runner.launch(rows_of(*lengths)) for lengths in ((128,) * 5, (3,) * 200)]
    assert runner.remains()
    for flight in launched:
        assert flight.collect().any()
    assert runner.remains() == []


def test_a_batch_that_cannot_be_launched_leaves_nothing_and_those_in_flight_go_on(runner: Watched) -> None:
    """Out of memory is the caller's to halve; its slot is free again, and zero."""
    flight = runner.launch(rows_of(9))
    for _ in range(2 * SLOTS):
        runner.failing = torch.OutOfMemoryError("no room")
        with pytest.raises(torch.OutOfMemoryError):
            runner.launch(rows_of(100, seed=2))
        runner.failing = None
        assert [len(flight.collect()), len(runner.launch(rows_of(3, 4)).collect())] == [1, 2]
        flight = runner.launch(rows_of(9))
    flight.collect()
    assert runner.remains() == []


def test_warm_up_runs_every_bucket() -> None:
    """The first tenant meets no kernel for the first time."""
    seen: list[int] = []

    def compute(batch: DeviceBatch) -> Tensor:
        seen.append(len(batch.ids))
        return torch.zeros(len(batch.bounds) - 1, 2)

    runner = DeviceRunner(compute, CPU, budget_tokens=10_000, width=2, longest=512, pads=False)
    runner.warm_up()
    assert sorted(set(seen)) == cuda_layout.buckets(10_000) == [4_096, 8_192, 10_000]


def test_a_ring_gives_slots_in_turn() -> None:
    """The slot that was free for longest is next, so its last copy is furthest in the past."""
    slots = [Slot(CPU, input_numbers=1, width=1) for _ in range(SLOTS)]
    ring = Ring(slots)
    order = []
    for _ in range(2 * SLOTS):
        order.append(slots.index(slot := ring.acquire()))
        ring.release(slot)
    assert order == [*range(SLOTS), *range(SLOTS)]


def test_a_cpu_has_no_variable_length_kernels() -> None:
    """There, and in full precision anywhere, padded classes serve."""
    assert not has_flash(CPU, torch.bfloat16, 64)
