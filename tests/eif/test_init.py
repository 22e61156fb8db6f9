"""The first process of the enclave: what it takes from the kernel's command line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from enclave import enclave_app, init
from infra.eif.profiles import NITRO, VM
from mrgc.wire.addresses import PARENT_CID
from mrgc.wire.frames import SLICE_BYTES

LINE = "console=ttyS0 mrgc.parent_cid=2 virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6 quiet"


def test_only_our_own_words_are_options() -> None:
    """Words of ours are taken by name; the kernel's and other modules' are left alone."""
    assert init.own_options(LINE) == {"parent_cid": "2"}
    assert init.own_options("console=ttyS0 amrgc.parent_cid=7\n") == {}


@pytest.mark.parametrize("line", ["mrgc.parent_cid=2 mrgc.parent_cid=3", "mrgc.parent_cid"])
def test_an_ambiguous_command_line_ends_the_boot(line: str) -> None:
    """Two values for one name, or a name without a value, leave nothing to choose."""
    with pytest.raises(ValueError):  # noqa: PT011  one kind of failure, whatever the text
        init.own_options(line)


def test_announced_devices_reach_the_module_that_serves_them() -> None:
    """The hypervisor's words are handed to the module whose name they bear, as its parameters."""
    devices = "device=4K@0xd0000000:5 device=4K@0xd0001000:6"
    assert init.module_parameters("virtio_mmio.ko", LINE) == devices
    assert init.module_parameters("virtio-mmio.ko", LINE) == devices
    assert init.module_parameters("nsm.ko", LINE) == ""


@pytest.mark.parametrize(
    ("line", "cid", "slice_bytes"), [(NITRO.command_line, PARENT_CID, SLICE_BYTES), (VM.command_line, 2, 28_672)]
)
def test_the_application_understands_what_each_profile_tells_it(line: str, cid: int, slice_bytes: int) -> None:
    """What stands on a profile's command line arrives as options that the application knows."""
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in init.own_options(line).items()]
    options = enclave_app._parser().parse_args(arguments)
    assert (options.parent_cid, options.write_bytes) == (cid, slice_bytes)


def test_an_option_that_the_application_does_not_know_ends_it() -> None:
    """A misspelt option is not ignored: the enclave does not start."""
    command = [sys.executable, "-m", "enclave.enclave_app", "--parent=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 2
    assert "--parent=2" in done.stderr
