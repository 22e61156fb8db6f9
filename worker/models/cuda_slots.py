"""Buffers between host and device: a ring of slots, so that copies of one batch run while another is computed.

A slot is what one token batch in flight needs: page-locked host memory for what goes in and what comes out, the same on
the device, and the events that order its copies. Slots are used in turn and given back in turn. A slot holds plaintext
from `open` to `wipe`.

The same code runs on a CPU, whose streams and events torch provides as objects that do nothing: so it is tested there.
May import: the standard library, numpy, torch, worker.models. Called by worker.models.cuda_runner.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.models.cuda_layout import Int32s

#: One slot is read back, one is computed, one is filled.
SLOTS: Final = 3


class Slot:
    """Buffers and events of one token batch in flight.

    Args:
        device: where the batch is computed.
        input_numbers: int32 numbers of the largest batch.
        width: float32 numbers of one row that comes back.
    """

    def __init__(self, device: torch.device, *, input_numbers: int, width: int) -> None:
        self._device = device
        # Page-locked memory is what makes a copy asynchronous; a CPU has no device to copy to.
        self._is_pinned = device.type == "cuda"
        self._width = width
        self._host_in = torch.zeros(input_numbers, dtype=torch.int32, pin_memory=self._is_pinned)
        self._device_in = torch.zeros(input_numbers, dtype=torch.int32, device=device)
        self._host_out = torch.zeros(0, width, pin_memory=self._is_pinned)
        self._device_out = torch.zeros(0, width, device=device)
        self._used = self._rows = 0
        module: Any = torch.get_device_module(device)
        # Blocking events let the waiting thread sleep; the default spins on a core that the tokenisers need.
        options = {"blocking": True} if device.type == "cuda" else {}
        self.copied, self.computed, self.read = (module.Event(**options) for _ in range(3))

    def open(self, numbers: int, *, rows: int) -> Int32s:
        """Begin a batch: make room for its rows on the way back, and return the host memory that its input goes to."""
        self._used, self._rows = numbers, rows
        if len(self._host_out) < rows:
            # Few batches have more rows than any before them, so this is rare; it waits for the device.
            room = 1 << (rows - 1).bit_length()
            self._host_out = torch.zeros(room, self._width, pin_memory=self._is_pinned)
            self._device_out = torch.zeros(room, self._width, device=self._device)
        view: Int32s = self._host_in[:numbers].numpy()
        return view

    def copy_in(self) -> Tensor:
        """Enqueue the copy to the device; return the device's numbers, int32."""
        used = self._device_in[: self._used]
        used.copy_(self._host_in[: self._used], non_blocking=True)
        return used

    def keep(self, rows: Tensor) -> None:
        """Enqueue, after the computation, taking its rows over and zeroing its input on the device."""
        self._device_out[: self._rows].copy_(rows)
        self._device_in[: self._used].zero_()

    def copy_out(self) -> None:
        """Enqueue the one copy back, and zeroing of what was copied."""
        used = self._device_out[: self._rows]
        self._host_out[: self._rows].copy_(used, non_blocking=True)
        used.zero_()

    def take(self) -> Tensor:
        """Return a copy of the rows that came back, float32 (rows, width), once `read` has happened."""
        return self._host_out[: self._rows].clone()

    def wipe(self) -> None:
        """Zero the host's side."""
        self._host_in[: self._used].zero_()
        self._host_out[: self._rows].zero_()
        self._used = self._rows = 0

    def wipe_device(self) -> None:
        """Zero the device's side of a batch that was given up."""
        self._device_in.zero_()
        self._device_out.zero_()


class Ring:
    """Slots in turn.

    Args:
        slots: at least one.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._free = deque(slots)
        self._busy: deque[Slot] = deque()

    def acquire(self) -> Slot:
        """Take the slot that was given back first.

        Raises:
            RuntimeError: all are in flight; the caller has to collect first.
        """
        if not self._free:
            raise RuntimeError("more batches in flight than the ring has slots")
        self._busy.append(self._free.popleft())
        return self._busy[-1]

    def release(self, slot: Slot) -> None:
        """Give back a slot whose batch has ended.

        Raises:
            RuntimeError: an older batch is still in flight; results leave in the order in which batches came.
        """
        if not self._busy or self._busy[0] is not slot:
            raise RuntimeError("batches are collected in the order of their launch")
        self._free.append(self._busy.popleft())

    def abandon(self, slot: Slot) -> None:
        """Give back the slot that was acquired last, whose batch could not be launched."""
        self._busy.remove(slot)
        self._free.append(slot)
