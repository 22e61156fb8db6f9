"""Attention over a packed token batch, in two ways that agree: variable-length kernels, and padded classes of rows.

The first is torch's flash attention over cumulative lengths (torch.nn.attention.varlen), for CUDA and half precision.
The second pads rows to powers of two and masks what was padded: it runs everywhere, in any precision, at up to twice
the work, and is what a device without those kernels gets. Neither waits for the device.

May import: the standard library, torch. Called by worker.models.cuda_encoder and worker.models.cuda_runner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    #: (qkv of (tokens, 3, heads, head width), batch) → (tokens, heads × head width)
    Attention = Callable[[Tensor, "DeviceBatch"], Tensor]

#: Compute capability from which the flash kernels exist (Ampere), and their largest head.
FLASH_CAPABILITY: Final = (8, 0)
FLASH_HEAD_WIDTH: Final = 256


class PaddedView(NamedTuple):
    """`cuda_layout.Padded` on the device."""

    widths: list[int]
    counts: list[int]
    gather: Tensor
    lengths: Tensor
    scatter: Tensor


class DeviceBatch(NamedTuple):
    """A token batch on the device; all tensors int32."""

    ids: Tensor
    positions: Tensor
    #: Where each row begins, filler rows included, and the end of the last.
    bounds: Tensor
    #: Most tokens of a row of this model. A constant: kernels are chosen by it, and batch mates must not choose.
    longest: int
    padded: PaddedView | None


def has_flash(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Tell whether the variable-length kernels serve this device, number type and head width."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    fits = head_width % 8 == 0 and head_width <= FLASH_HEAD_WIDTH
    return fits and torch.cuda.get_device_capability(device) >= FLASH_CAPABILITY


def attend_varlen(qkv: Tensor, batch: DeviceBatch) -> Tensor:
    """Attend within each row by flash attention over cumulative lengths."""
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415  takes seconds, and CUDA alone has the kernels

    query, key, value = qkv.unbind(dim=1)
    attended = varlen_attn(query, key, value, batch.bounds, batch.bounds, batch.longest, batch.longest)
    return cast("Tensor", attended).flatten(1)  # it returns more than a tensor only when asked for more


def attend_padded(qkv: Tensor, batch: DeviceBatch) -> Tensor:
    """Attend within each row by scaled dot product attention over classes of padded rows, their padding masked."""
    view = batch.padded
    if view is None:
        raise ValueError("batch was laid out without its padded view")
    tokens, _, heads, head_width = qkv.shape
    cells = qkv.index_select(0, view.gather)
    attended = torch.empty(len(cells), heads * head_width, dtype=qkv.dtype, device=qkv.device)
    cell = row = 0
    for width, count in zip(view.widths, view.counts, strict=True):
        here = slice(cell, cell + count * width)
        query, key, value = cells[here].view(count, width, 3, heads, head_width).permute(2, 0, 3, 1, 4)
        steps = torch.arange(width, dtype=torch.int32, device=qkv.device)
        is_token = steps < view.lengths[row : row + count, None]
        of_class = functional.scaled_dot_product_attention(query, key, value, attn_mask=is_token[:, None, None, :])
        attended[here] = of_class.transpose(1, 2).reshape(count * width, -1)
        cell, row = here.stop, row + count
    return attended.index_select(0, view.scatter).view(tokens, -1)
