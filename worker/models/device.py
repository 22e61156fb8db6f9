"""The device that models run on: which it is, which number type it computes well in, how much memory it has.

Called by worker.models.registry. May import: the standard library, torch, mrgc.errors.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import torch

from mrgc.errors import ConfigError

#: CPU features (names of /proc/cpuinfo) that multiply bfloat16 natively; elsewhere it is slower than float32.
BF16_FEATURES: Final = frozenset({"avx512_bf16", "amx_bf16"})


def choose_dtype(wish: str, *, native_bf16: bool) -> torch.dtype:
    """Resolve MRGC_DTYPE: `bf16` and `fp32` are orders, `auto` is bf16 where the device has it natively."""
    if wish == "auto":
        wish = "bf16" if native_bf16 else "fp32"
    return torch.bfloat16 if wish == "bf16" else torch.float32


def has_native_bf16(device: torch.device) -> bool:
    """Ask the device, or for a CPU the kernel's list of its features."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return lists_bf16(Path("/proc/cpuinfo").read_text(encoding="utf-8"))


def lists_bf16(cpuinfo: str) -> bool:
    """Tell whether the text of /proc/cpuinfo names a bfloat16 feature for its first processor."""
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return not BF16_FEATURES.isdisjoint(flags.split())


def open_device(name: str) -> torch.device:
    """Return the device of MRGC_DEVICE.

    Raises:
        ConfigError: torch sees no such device here.
    """
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError("MRGC_DEVICE names a device that is not there")
    return device


def total_bytes(device: torch.device) -> int:
    """Return the device's whole memory, whoever uses it now; a CPU's is the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
