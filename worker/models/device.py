"""The device that models run on: which it is, which number type it computes well in, how much memory it has.

Also the one place where torch's own errors about its memory become ours. Called by worker.models.registry and by
models. May import: the standard library, torch, mrgc.errors.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from mrgc.errors import ConfigError, DeviceOutOfMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

#: CPU features (names of /proc/cpuinfo) that multiply bfloat16 natively; elsewhere it is slower than float32.
BF16_FEATURES: Final = frozenset({"avx512_bf16", "amx_bf16"})
#: What torch says, without a class of its own, when its allocator on the CPU or oneDNN's finds no memory.
_NO_MEMORY: Final = ("DefaultCPUAllocator", "could not create a primitive")


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


@contextmanager
def out_of_memory_as_ours() -> Iterator[None]:
    """Turn the errors of an allocation that failed into DeviceOutOfMemory; others pass."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceOutOfMemory("token batch does not fit the device") from error
    except MemoryError as error:
        raise DeviceOutOfMemory("token batch does not fit the memory") from error
    except RuntimeError as error:
        if any(said in str(error) for said in _NO_MEMORY):
            raise DeviceOutOfMemory("token batch does not fit the memory") from error
        raise
