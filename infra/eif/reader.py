"""Reads an enclave image file: one pass that checks every length, the CRC and the signature, and measures.

What comes out was checked; nothing of it is trusted until its PCRs are compared. Large sections are hashed as they
pass and never held. Called by `infra.eif.__main__`, `infra.eif.build` and whoever boots an image. May import: the
standard library, cryptography, mrgc.errors, mrgc.wire.strict_json, infra.eif.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from infra.eif import layout, signature
from infra.eif.layout import Header, SectionType, Span
from infra.eif.measurement import SIGNER, WHOLE_IMAGE, Measurement, signer_pcr
from mrgc.errors import ConfigError, FormatError
from mrgc.wire import strict_json

_PIECE_BYTES: Final = 1 << 20
_MAX_METADATA_VALUES: Final = 10_000


@dataclass(frozen=True, slots=True)
class EnclaveImage:
    """An enclave image file that is well formed, with intact CRC and, if it is signed, a signature that verifies."""

    path: Path
    file_bytes: int
    header: Header
    sections: tuple[Span, ...]
    #: PCR0, PCR1 and PCR2; PCR8 too if it is signed.
    pcrs: dict[int, bytes]
    command_line: str
    metadata: dict[str, Any]
    signer: x509.Certificate | None

    @property
    def kernel(self) -> Span:
        """Where the kernel lies."""
        return next(each for each in self.sections if each.type is SectionType.KERNEL)

    @property
    def ramdisks(self) -> tuple[Span, ...]:
        """Where the ramdisks lie, in the order in which the kernel unpacks them."""
        return tuple(each for each in self.sections if each.type is SectionType.RAMDISK)


def read(path: Path) -> EnclaveImage:
    """Read and check an enclave image file.

    Raises:
        FormatError: not an enclave image, a malformed or a damaged one; says what is wrong where.
        ConfigError: the file cannot be read.
    """
    with _opened(path) as stream:
        file_bytes = os.fstat(stream.fileno()).st_size
        raw_header = stream.read(layout.HEADER_BYTES)
        header = layout.parse_header(raw_header, file_bytes=file_bytes)
        scan = _Scan(stream, crc=zlib.crc32(raw_header[: -layout.CRC_BYTES]))
        spans = tuple(scan.section(index, size) for index, (_, size) in enumerate(header.sections))
    layout.ensure_arrangement([span.type for span in spans])
    if scan.crc != header.crc:
        raise FormatError(f"damaged: its CRC is {scan.crc:08x}, and its header says {header.crc:08x}")
    pcrs = scan.measurement.pcrs()
    signer = None
    if SectionType.SIGNATURE in scan.kept:
        signer = signature.verify(scan.kept[SectionType.SIGNATURE], pcrs[WHOLE_IMAGE])
        pcrs[SIGNER] = signer_pcr(signer.public_bytes(Encoding.DER))
    return EnclaveImage(
        path=path,
        file_bytes=file_bytes,
        header=header,
        sections=spans,
        pcrs=pcrs,
        command_line=_command_line(scan.kept[SectionType.COMMAND_LINE]),
        metadata=_metadata(scan.kept[SectionType.METADATA]),
        signer=signer,
    )


class _Scan:
    """One pass over the sections: CRC, measurement, and the data of the small ones."""

    def __init__(self, stream: BinaryIO, *, crc: int) -> None:
        self._stream = stream
        self.crc = crc
        self.measurement = Measurement()
        self.kept: dict[SectionType, bytes] = {}

    def section(self, index: int, size: int) -> Span:
        """Take in the section that begins where the stream stands."""
        raw = self._exactly(layout.SECTION_HEADER_BYTES)
        section_type = layout.parse_section_header(raw, index=index, expected_bytes=size)
        span = Span(section_type, self._stream.tell(), size)
        registers = self.measurement.begin(section_type)
        pieces = []
        for start in range(0, size, _PIECE_BYTES):
            piece = self._exactly(min(_PIECE_BYTES, size - start))
            self.measurement.add(registers, piece)
            if section_type in layout.MAX_BYTES:
                pieces.append(piece)
        if pieces:
            self.kept[section_type] = b"".join(pieces)
        return span

    def _exactly(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) != size:
            raise FormatError("the file shrank while it was read")
        self.crc = zlib.crc32(data, self.crc)
        return data


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def _command_line(data: bytes) -> str:
    # Printable ASCII only: it goes to terminals and into other programs' arguments. Tools end it with NUL or newline.
    text = data.rstrip(b"\0\n ")
    if not all(0x20 <= byte < 0x7F for byte in text):
        raise FormatError("command line: not printable ASCII")
    return text.decode("ascii")


def _metadata(data: bytes) -> dict[str, Any]:
    try:
        metadata = strict_json.parse(data, max_values=_MAX_METADATA_VALUES)
    except FormatError as error:
        raise FormatError(f"metadata: {error}") from error
    if type(metadata) is not dict:
        raise FormatError("metadata: not a JSON object")
    return metadata
