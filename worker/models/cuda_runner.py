"""Runs token batches on a device that works through queues: launch now, collect later, never wait in between.

Three queues (streams): copies in, computation, copies back. `launch` fills a slot of the ring, enqueues all three and
returns; events make each wait for the one before it, on the device. `collect` is the only place where the host waits,
and it waits for the copy back of its own batch, while the next one computes.

One thread launches and collects. Not yet run on a GPU; on a CPU, where streams are objects that do nothing, the tests
run every line but the flash kernels.

May import: the standard library, numpy, torch, mrgc.errors, worker.models. Called by worker.models.embedder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from worker.models import cuda_layout
from worker.models.cuda_attention import DeviceBatch, PaddedView
from worker.models.cuda_slots import SLOTS, Ring, Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.models.base import Embeddings, Ids

    #: float32, of a laid-out batch: (rows and fillers, width), or a row for each token of the bucket.
    Compute = Callable[[DeviceBatch], Tensor]

#: Numbers of the largest input per token of its bucket: ids, positions, bounds; gather (two), lengths, scatter.
_PACKED_NUMBERS: Final = 3
_PADDED_NUMBERS: Final = 4


class Flight:
    """One token batch between launch and collect."""

    def __init__(self, slot: Slot, ring: Ring) -> None:
        self._slot = slot
        self._ring = ring

    @torch.inference_mode()
    def collect(self) -> Embeddings:
        """Wait for the batch and return its rows, float32 (rows, width); zero what is left of it on the host.

        Called once, in the order of the launches.
        """
        self._slot.read.synchronize()
        rows: Embeddings = self._slot.take().numpy()
        self._slot.wipe()
        self._ring.release(self._slot)
        return rows


class DeviceRunner:
    """A model's forward pass on a device of its own queues.

    Args:
        compute: from a batch on the device to its rows; enqueues and does not wait.
        device: a CUDA device, or the CPU for tests.
        budget_tokens: most tokens of one batch.
        width: numbers of one row that `compute` gives.
        longest: most tokens of one input.
        pads: whether `compute` needs the padded view.
        per_token: whether it gives a row for every token, and not for every input.
    """

    def __init__(  # noqa: PLR0913  sizes of buffers that are made once
        self,
        compute: Compute,
        device: torch.device,
        *,
        budget_tokens: int,
        width: int,
        longest: int,
        pads: bool,
        per_token: bool = False,
    ) -> None:
        self._compute = compute
        self._device = device
        self._longest = longest
        self.pads = pads
        self._per_token = per_token
        self._streams: Any = torch.get_device_module(device)
        where = {"device": device} if device.type == "cuda" else {}
        self._copy_in, self._work, self._copy_out = (self._streams.Stream(**where) for _ in range(3))
        #: The queue that computes.
        self.stream = self._work
        self.sizes = cuda_layout.buckets(budget_tokens)
        numbers = (_PACKED_NUMBERS + _PADDED_NUMBERS * pads) * self.sizes[-1] + 1
        self._ring = Ring([Slot(device, input_numbers=numbers, width=width) for _ in range(SLOTS)])

    @torch.inference_mode()
    def launch(self, rows: Sequence[Ids]) -> Flight:
        """Enqueue a token batch.

        Args:
            rows: ids of each input, 1 to `longest` of them, together within the budget.

        Returns:
            What collects its rows; at most `SLOTS` batches may be between launch and collect.

        Raises:
            torch.OutOfMemoryError: the batch does not fit; it left nothing behind, and those in flight go on.
        """
        slot = self._ring.acquire()
        try:
            self._enqueue(slot, rows)
        except BaseException:
            # The copy into the device may be under way; the slot's memory must not change below it.
            self._streams.synchronize(self._device)
            slot.wipe()
            slot.wipe_device()
            self._ring.abandon(slot)
            raise
        return Flight(slot, self._ring)

    def warm_up(self) -> None:
        """Run every bucket once, and a batch of one token: kernels and memory are there before the first tenant."""
        for size in self.sizes:
            whole, rest = divmod(size, self._longest)
            lengths = [self._longest] * whole + [rest] * (rest > 0)
            self.launch([np.zeros(length, dtype=np.int32) for length in lengths]).collect()
        self.launch([np.zeros(1, dtype=np.int32)]).collect()

    def _enqueue(self, slot: Slot, rows: Sequence[Ids]) -> None:
        layout = cuda_layout.lay_out([len(row) for row in rows], self.sizes, longest=self._longest)
        padded = cuda_layout.pad(layout) if self.pads else None
        index = [layout.bounds] if padded is None else [layout.bounds, padded.gather, padded.lengths, padded.scatter]
        lengths = [layout.bucket, layout.bucket, *map(len, index)]
        wanted = int(layout.bounds[layout.rows]) if self._per_token else layout.rows
        host = slot.open(sum(lengths), rows=wanted)
        cuda_layout.write_ids(rows, layout, host)
        np.concatenate(index, out=host[2 * layout.bucket :])
        with self._streams.stream(self._copy_in):
            ids, positions, bounds, *view = torch.split(slot.copy_in(), lengths)
            slot.copied.record(self._copy_in)
        with self._streams.stream(self._work):
            self._work.wait_event(slot.copied)
            on_device = None if padded is None else PaddedView(padded.widths, padded.counts, *view)
            computed = self._compute(DeviceBatch(ids, positions, bounds, self._longest, on_device))
            slot.keep(computed[:wanted])
            slot.computed.record(self._work)
        with self._streams.stream(self._copy_out):
            self._copy_out.wait_event(slot.computed)
            slot.copy_out()
            slot.read.record(self._copy_out)
