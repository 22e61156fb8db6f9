"""PCR0, PCR1, PCR2 and PCR8 of an enclave image, as the Nitro hypervisor measures it.

Each is SHA-384(48 zero bytes ‖ SHA-384(content)): PCR0 of kernel, command line and all ramdisks, PCR1 of kernel,
command line and the first ramdisk, PCR2 of the other ramdisks, PCR8 of the signing certificate's DER. Headers,
metadata and signature are not measured (aws-nitro-enclaves-image-format, src/utils/eif_reader.rs). Called by
`infra.eif.reader`, `infra.eif.writer` and `infra.local_nsm`. May import: the standard library, infra.eif.layout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from infra.eif.layout import SectionType

PCR_BYTES: Final = 48
WHOLE_IMAGE, BOOT, APPLICATION, SIGNER = 0, 1, 2, 8
#: How nitro-cli names the algorithm beside the values.
HASH_ALGORITHM: Final = "Sha384 { ... }"


class Measurement:
    """Takes the sections of an image in file order and gives its registers."""

    def __init__(self) -> None:
        self._digests = {index: hashlib.sha384() for index in (WHOLE_IMAGE, BOOT, APPLICATION)}
        self._ramdisks = 0

    def begin(self, section_type: SectionType) -> tuple[int, ...]:
        """Return the registers that cover the section that comes next."""
        if section_type in (SectionType.KERNEL, SectionType.COMMAND_LINE):
            return (WHOLE_IMAGE, BOOT)
        if section_type is not SectionType.RAMDISK:
            return ()
        self._ramdisks += 1
        return (WHOLE_IMAGE, BOOT) if self._ramdisks == 1 else (WHOLE_IMAGE, APPLICATION)

    def add(self, registers: tuple[int, ...], piece: bytes | memoryview) -> None:
        """Add a piece of a section's data to the registers that cover it."""
        for index in registers:
            self._digests[index].update(piece)

    def pcrs(self) -> dict[int, bytes]:
        """Return PCR0, PCR1 and PCR2, 48 bytes each."""
        return {index: extend_zero(digest.digest()) for index, digest in self._digests.items()}


def signer_pcr(certificate_der: bytes) -> bytes:
    """Return PCR8 of an image signed under this certificate."""
    return extend_zero(hashlib.sha384(certificate_der).digest())


def extend_zero(value: bytes) -> bytes:
    """Return a zero PCR extended once by `value`: SHA-384(48 zero bytes ‖ value)."""
    return hashlib.sha384(bytes(PCR_BYTES) + value).digest()


def to_json(pcrs: Mapping[int, bytes]) -> dict[str, str]:
    """Return registers as nitro-cli prints them under "Measurements"."""
    return {"HashAlgorithm": HASH_ALGORITHM} | {f"PCR{index}": pcrs[index].hex() for index in sorted(pcrs)}
