"""Overwriting what finished batches left in a CUDA device's memory.

torch keeps the memory of intermediate results for the next batch instead of giving it back, so that it holds what the
last batch computed until something else is computed there. `overwrite_free` fills every free block of torch's
allocator with zeros. What it cannot reach: scratch memory that libraries hold themselves (cuBLAS keeps partial sums
there), and registers and caches of the device.

Not yet run on a GPU. May import: the standard library, torch. Called by worker.models.cuda_embedder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

_snapshot: Callable[..., list[Mapping[str, Any]]] = torch.cuda.memory_snapshot


class Span(NamedTuple):
    """A stretch of device memory."""

    address: int
    size_bytes: int

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Numba's protocol, version 3, by which torch takes over memory that it did not allocate."""
        return {"shape": (self.size_bytes,), "typestr": "|u1", "data": (self.address, False), "version": 3}


def free_spans(segments: Iterable[Mapping[str, Any]], device: int) -> Iterator[Span]:
    """Find the blocks that torch's allocator holds and nobody uses.

    Args:
        segments: what `torch.cuda.memory_snapshot` returns: segments, each with its blocks in order of address.
        device: index of the device.
    """
    for segment in segments:
        if segment["device"] != device:
            continue
        address = segment["address"]
        for block in segment["blocks"]:
            if block["state"] == "inactive":
                yield Span(address, block["size"])
            address += block["size"]


def overwrite_free(device: torch.device, stream: torch.cuda.Stream) -> None:
    """Fill all free memory with zeros, and wait until it is done.

    Args:
        device: a CUDA device.
        stream: the one that all batches are computed on. What it computed before is finished first, and what it
            computes later comes after, so no block is overwritten in use.
    """
    index = torch.cuda.current_device() if device == torch.device(device.type) else device.index
    with torch.cuda.stream(stream):
        for span in free_spans(_snapshot(include_traces=False), index):
            torch.as_tensor(span, device=device).zero_()
    stream.synchronize()
