"""The frame of an enclave image file (EIF), version 4: header, section headers, and where each section's data lies.

aws-nitro-enclaves-image-format, src/defs/mod.rs; all integers big-endian:

    header (548 bytes)  magic ".eif" ‖ u16 version ‖ u16 flags ‖ u64 default memory ‖ u64 default CPUs ‖ u16 reserved ‖
                        u16 sections ‖ u64 offset × 32 ‖ u64 size × 32 ‖ u32 unused ‖ u32 CRC
    section             u16 type ‖ u16 flags ‖ u64 size ‖ data

An offset points at a section's header; a size excludes it. The CRC (zlib's) covers everything but itself. Called by
`infra.eif.reader` and `infra.eif.writer`. May import: the standard library, mrgc.errors.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from mrgc.errors import FormatError, TooLargeError, UnsupportedError

MAGIC: Final = b".eif"
VERSION: Final = 4  #: Since 2022; earlier ones lack metadata, and no current tool writes them.
MAX_SECTIONS: Final = 32
#: Kernel and file system of an enclave live in its memory: no parent has room for four times more than this.
MAX_IMAGE_BYTES: Final = 32 << 30
#: x86 kernels truncate at 2,048 bytes (COMMAND_LINE_SIZE), arm64 too.
MAX_COMMAND_LINE_BYTES: Final = 2_048
MAX_METADATA_BYTES: Final = 1 << 20  #: A few hundred bytes, unless someone ships a bill of materials in it.
MAX_SIGNATURE_BYTES: Final = 32_768  #: aws-nitro-enclaves-image-format, SIGNATURE_MAX_SIZE.

_FIXED: Final = struct.Struct(">4sHHQQHH")
_TABLES: Final = struct.Struct(f">{MAX_SECTIONS}Q{MAX_SECTIONS}Q")
_TAIL: Final = struct.Struct(">II")
_SECTION: Final = struct.Struct(">HHQ")

HEADER_BYTES: Final = _FIXED.size + _TABLES.size + _TAIL.size
SECTION_HEADER_BYTES: Final = _SECTION.size
CRC_BYTES: Final = 4
_ARM64_FLAG: Final = 1


class SectionType(IntEnum):
    """What a section holds."""

    KERNEL = 1
    COMMAND_LINE = 2
    RAMDISK = 3
    SIGNATURE = 4
    METADATA = 5


#: Longest data of the sections that a reader keeps in memory; the others are only hashed.
MAX_BYTES: Final = {
    SectionType.COMMAND_LINE: MAX_COMMAND_LINE_BYTES,
    SectionType.METADATA: MAX_METADATA_BYTES,
    SectionType.SIGNATURE: MAX_SIGNATURE_BYTES,
}


class Span(NamedTuple):
    """Where one section's data lies in the file."""

    type: SectionType
    offset: int
    size: int

    @property
    def end(self) -> int:
        """Return the offset after the data."""
        return self.offset + self.size


class Header(NamedTuple):
    """The header's own values; which types its sections have, only their own headers say."""

    is_arm64: bool
    default_memory_bytes: int
    default_cpus: int
    #: Of each section: offset of its header, and size of its data.
    sections: tuple[tuple[int, int], ...]
    crc: int


def pack_header(header: Header) -> bytes:
    """Return the 548 bytes of a header; its last four are the CRC."""
    flags = _ARM64_FLAG if header.is_arm64 else 0
    unused = [0] * (MAX_SECTIONS - len(header.sections))
    offsets = [offset for offset, _ in header.sections] + unused
    sizes = [size for _, size in header.sections] + unused
    return (
        _FIXED.pack(MAGIC, VERSION, flags, header.default_memory_bytes, header.default_cpus, 0, len(header.sections))
        + _TABLES.pack(*offsets, *sizes)
        + _TAIL.pack(0, header.crc)
    )


def parse_header(data: bytes, *, file_bytes: int) -> Header:
    """Read a header and check that its sections fill the file, one after the other, without gap or overlap.

    A file whose tables and whose order of bytes differ would be one image to a reader that follows the tables and
    another to a reader that does not, so only one arrangement is accepted: the writer's.

    Args:
        data: the first 548 bytes, or as many as there are.
        file_bytes: length of the whole file.

    Raises:
        FormatError: not an EIF, or not a well-formed one; says what is wrong where.
    """
    if not data.startswith(MAGIC):
        raise FormatError("not an enclave image: it does not begin with .eif")
    if len(data) < HEADER_BYTES:
        raise FormatError(f"cut short: {len(data)} bytes, and the header alone has {HEADER_BYTES}")
    if file_bytes > MAX_IMAGE_BYTES:
        raise TooLargeError(f"{file_bytes} bytes are no enclave image")
    _, version, flags, memory, cpus, reserved, count = _FIXED.unpack_from(data)
    if version != VERSION:
        raise UnsupportedError(f"version {version} of the format; this reader knows version {VERSION}")
    if flags & ~_ARM64_FLAG or reserved:
        raise FormatError("header: unknown flags, or a reserved field that is not zero")
    if not 1 <= count <= MAX_SECTIONS:
        raise FormatError(f"header: {count} sections; there can be 1 to {MAX_SECTIONS}")
    tables = _TABLES.unpack_from(data, _FIXED.size)
    offsets, sizes = tables[:MAX_SECTIONS], tables[MAX_SECTIONS:]
    if any(offsets[count:]) or any(sizes[count:]):
        raise FormatError(f"header: has {count} sections, and says where more lie")
    unused, crc = _TAIL.unpack_from(data, _FIXED.size + _TABLES.size)
    if unused:
        raise FormatError("header: an unused field is not zero")
    sections = tuple(zip(offsets[:count], sizes[:count], strict=True))
    _ensure_contiguous(sections, file_bytes)
    return Header(bool(flags & _ARM64_FLAG), memory, cpus, sections, crc)


def pack_section_header(section_type: SectionType, size: int) -> bytes:
    """Return the 12 bytes before a section's data."""
    return _SECTION.pack(section_type, 0, size)


def parse_section_header(data: bytes, *, index: int, expected_bytes: int) -> SectionType:
    """Read the 12 bytes before a section's data.

    Args:
        data: the section's header.
        index: which section this is, for the error's text.
        expected_bytes: the size that the file's header gives.

    Raises:
        FormatError: an unknown type, flags, another size than in the file's header, or more than the type may have.
    """
    number, flags, size = _SECTION.unpack(data)
    try:
        section_type = SectionType(number)
    except ValueError:
        raise UnsupportedError(f"section {index}: unknown type {number}") from None
    if flags:
        raise FormatError(f"section {index}: unknown flags")
    if size != expected_bytes:
        raise FormatError(f"section {index}: {size} bytes by its own header, {expected_bytes} by the file's")
    if size > MAX_BYTES.get(section_type, MAX_IMAGE_BYTES):
        raise TooLargeError(f"section {index}: {size} bytes are too many for a {name_of(section_type)}")
    if size == 0:
        raise FormatError(f"section {index}: the {name_of(section_type)} is empty")
    return section_type


def name_of(section_type: SectionType) -> str:
    """Return a section type's name as a person reads it."""
    return section_type.name.lower().replace("_", " ")


def ensure_arrangement(types: Sequence[SectionType]) -> None:
    """Demand the sections that an image needs, in the order that its measurements have.

    Raises:
        FormatError: a section is missing, occurs twice, or stands where no tool that measures looks for it.
    """
    for one in (SectionType.KERNEL, SectionType.COMMAND_LINE, SectionType.METADATA):
        if types.count(one) != 1:
            raise FormatError(f"{types.count(one)} sections of type {name_of(one)}; there must be 1")
    if types.count(SectionType.SIGNATURE) > 1:
        raise FormatError("more than one signature")
    if SectionType.RAMDISK not in types:
        raise FormatError("no ramdisk")
    measured = [each for each in types if each not in (SectionType.METADATA, SectionType.SIGNATURE)]
    # PCR0 is a hash over these in file order: kernel, command line, ramdisks.
    if measured != sorted(measured):
        raise FormatError("kernel, command line and ramdisks are not in this order")


def _ensure_contiguous(sections: Sequence[tuple[int, int]], file_bytes: int) -> None:
    expected = HEADER_BYTES
    for index, (offset, size) in enumerate(sections):
        if offset != expected:
            raise FormatError(f"section {index}: begins at byte {offset}, and the one before ends at {expected}")
        expected = offset + SECTION_HEADER_BYTES + size
        if expected > file_bytes:
            raise FormatError(f"section {index}: ends at byte {expected}, and the file at {file_bytes}")
    if expected != file_bytes:
        raise FormatError(f"{file_bytes - expected} bytes after the last section")
