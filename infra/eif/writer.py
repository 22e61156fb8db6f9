"""Writes an enclave image file: the same sections give the same bytes.

Called by `infra.eif.build` and tests. May import: the standard library, infra.eif, infra.durable_file.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.durable_file import replace_file
from infra.eif import layout, signature
from infra.eif.layout import Header, SectionType
from infra.eif.measurement import WHOLE_IMAGE, Measurement
from infra.eif.signature import Signer
from mrgc.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Contents:
    """What an enclave image is made of."""

    kernel: bytes
    command_line: str
    #: The first one boots, the others are the application.
    ramdisks: tuple[bytes, ...]
    #: Told to whoever reads the file; in no PCR.
    metadata: Mapping[str, Any]
    #: What the image asks for if `nitro-cli run-enclave` is not told otherwise.
    memory_bytes: int
    cpus: int
    signer: Signer | None = None


def encode(contents: Contents) -> bytes:
    """Return the bytes of the image, in the order of sections that nitro-cli writes.

    Raises:
        ConfigError: the command line, metadata or signature is longer than the format allows, or the signing key and
            certificate do not fit.
    """
    sections = [
        (SectionType.KERNEL, contents.kernel),
        (SectionType.COMMAND_LINE, contents.command_line.encode("ascii")),
        (SectionType.METADATA, json.dumps(contents.metadata, sort_keys=True, separators=(",", ":")).encode()),
        *((SectionType.RAMDISK, ramdisk) for ramdisk in contents.ramdisks),
    ]
    if contents.signer is not None:
        sections.append((SectionType.SIGNATURE, signature.sign(_pcr0(sections), contents.signer)))
    layout.ensure_arrangement([section_type for section_type, _ in sections])
    for section_type, data in sections:
        if not 1 <= len(data) <= layout.MAX_BYTES.get(section_type, layout.MAX_IMAGE_BYTES):
            raise ConfigError(f"{layout.name_of(section_type)}: {len(data)} bytes is not a length it may have")
    return _lay_out(sections, memory_bytes=contents.memory_bytes, cpus=contents.cpus)


def write(path: Path, contents: Contents) -> None:
    """Write the image; the file appears whole or not at all.

    Raises:
        ConfigError: as `encode`.
    """
    replace_file(path, encode(contents), mode=0o644)


def _lay_out(sections: Sequence[tuple[SectionType, bytes]], *, memory_bytes: int, cpus: int) -> bytes:
    places = []
    offset = layout.HEADER_BYTES
    for _, data in sections:
        places.append((offset, len(data)))
        offset += layout.SECTION_HEADER_BYTES + len(data)
    body = [part for kind, data in sections for part in (layout.pack_section_header(kind, len(data)), data)]
    header = Header(False, memory_bytes, cpus, tuple(places), 0)
    crc = zlib.crc32(layout.pack_header(header)[: -layout.CRC_BYTES])
    for part in body:
        crc = zlib.crc32(part, crc)
    return b"".join([layout.pack_header(header._replace(crc=crc)), *body])


def _pcr0(sections: Sequence[tuple[SectionType, bytes]]) -> bytes:
    measurement = Measurement()
    for section_type, data in sections:
        measurement.add(measurement.begin(section_type), data)
    return measurement.pcrs()[WHOLE_IMAGE]
