"""For what an image is built: a Nitro Enclave, or a virtual machine that stands in for one.

The two differ in what the kernel is told and, for a VM, in which roots may vouch for KMS. All of it is measured, so an
image of one kind has another PCR0 than an image of the other. Called by `infra.eif.build` and `infra.vm`. May import:
the standard library.
"""

from __future__ import annotations

from typing import Final, NamedTuple

MEBIBYTE: Final = 1 << 20
#: nitro-cli refuses to start an enclave with less memory than this many times its image (resource_manager.rs).
MEMORY_PER_IMAGE: Final = 4
#: What the application may need beside its files: 256 MiB of frames (docs/spec.md §6), 128 of headers, keys, Python.
WORKING_MIB: Final = 512


class Profile(NamedTuple):
    """What the command line says for one kind of machine."""

    name: str
    command_line: str


#: AWS's own line (aws-nitro-enclaves-sdk-bootstrap, kernel/cmdline/x86_64.cmdline), less `nomodules`, which no kernel
#: reads.
NITRO: Final = Profile(
    "nitro",
    "reboot=k panic=30 pci=off console=ttyS0 i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd random.trust_cpu=on",
)
#: QEMU: its vsock daemon knows the parent as CID 2 only and takes writes below 32,000 bytes; a keyboard reset would
#: restart some of its machines in place.
VM: Final = Profile(
    "vm",
    "console=ttyS0 reboot=t panic=-1 quiet random.trust_cpu=on mrgc.parent_cid=2 mrgc.write_bytes=28672",
)


def memory_mib(image_bytes: int) -> int:
    """Return the memory that an enclave with this image needs, in MiB, a multiple of 64."""
    image_mib = -(-image_bytes // MEBIBYTE)
    needed = max(MEMORY_PER_IMAGE * image_mib, 2 * image_mib + WORKING_MIB)
    return -(-needed // 64) * 64
