"""Enclave image files: what is written reads back, and everything else is refused with a reason."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infra.eif import layout, reader, writer
from infra.eif.layout import SectionType
from infra.eif.writer import Contents
from mrgc.errors import ConfigError, FormatError, TooLargeError, UnsupportedError
from tests.eif.conftest import CONTENTS

VECTORS: Final = Path(__file__).parents[1] / "vectors"
ENCODED: Final = writer.encode(CONTENTS)
KERNEL_HEADER: Final = layout.HEADER_BYTES
FIRST_OFFSET, FIRST_SIZE = 28, 28 + 32 * 8


def read(data: bytes, tmp_path: Path) -> reader.EnclaveImage:
    """Read an image from its bytes."""
    file = tmp_path / "image.eif"
    file.write_bytes(data)
    return reader.read(file)


def with_crc(data: bytes) -> bytes:
    """Return the file with its CRC made right, so that only the change under test is wrong."""
    end = layout.HEADER_BYTES
    return data[: end - 4] + struct.pack(">I", zlib.crc32(data[end:], zlib.crc32(data[: end - 4]))) + data[end:]


def patched(offset: int, value: bytes) -> bytes:
    """Return the small image with other bytes at an offset, and the CRC made right."""
    return with_crc(ENCODED[:offset] + value + ENCODED[offset + len(value) :])


def assembled(*sections: tuple[SectionType, bytes]) -> bytes:
    """Return an image of any sections, however wrong."""
    return writer._lay_out(sections, memory_bytes=1, cpus=1)


words = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)
any_contents = st.builds(
    Contents,
    kernel=st.binary(min_size=1, max_size=300),
    command_line=words,
    ramdisks=st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5).map(tuple),
    metadata=st.dictionaries(words, words, max_size=4),
    memory_bytes=st.integers(0, 2**64 - 1),
    cpus=st.integers(0, 2**64 - 1),
)


@given(any_contents)
def test_what_is_written_reads_back(tmp_path_factory: pytest.TempPathFactory, contents: Contents) -> None:
    """Any contents come back section by section, and the same contents give the same bytes."""
    data = writer.encode(contents)
    image = read(data, tmp_path_factory.getbasetemp())
    taken = [data[span.offset : span.end] for span in (image.kernel, *image.ramdisks)]
    assert taken == [contents.kernel, *contents.ramdisks]
    assert (image.command_line, image.metadata, image.signer) == (contents.command_line, contents.metadata, None)
    assert (image.header.default_memory_bytes, image.header.default_cpus) == (contents.memory_bytes, contents.cpus)
    assert writer.encode(contents) == data


@given(any_contents)
def test_the_measurements_are_those_of_the_published_rule(
    tmp_path_factory: pytest.TempPathFactory, contents: Contents
) -> None:
    """PCR0 covers kernel, command line and ramdisks, PCR1 stops at the first ramdisk, PCR2 is the others."""
    first, *others = contents.ramdisks
    boot = contents.kernel + contents.command_line.encode() + first
    rest = b"".join(others)
    expected = [
        hashlib.sha384(bytes(48) + hashlib.sha384(content).digest()).digest() for content in (boot + rest, boot, rest)
    ]
    image = read(writer.encode(contents), tmp_path_factory.getbasetemp())
    assert [image.pcrs[index] for index in (0, 1, 2)] == expected


def test_metadata_is_not_measured(tmp_path: Path) -> None:
    """Name, version and what else is told about an image change none of its registers."""
    other = replace(CONTENTS, metadata={"ImageName": "other"}, memory_bytes=1)
    assert read(writer.encode(other), tmp_path).pcrs == read(ENCODED, tmp_path).pcrs


def test_the_header_lies_where_other_readers_look(tmp_path: Path) -> None:
    """Magic, version, counts and the first section stand at the published offsets."""
    magic, version, flags, memory, cpus, reserved, count = struct.unpack_from(">4sHHQQHH", ENCODED)
    assert (magic, version, flags, reserved, count) == (b".eif", 4, 0, 0, 5)
    assert (memory, cpus) == (256 << 20, 2)
    assert struct.unpack_from(">Q", ENCODED, FIRST_OFFSET) == (548,)
    assert struct.unpack_from(">HHQ", ENCODED, 548) == (1, 0, len(CONTENTS.kernel))
    assert [span.type.value for span in read(ENCODED, tmp_path).sections] == [1, 2, 5, 3, 3]


@given(st.integers(0, len(ENCODED) - 1), st.integers(1, 255))
@example(layout.HEADER_BYTES - 1, 1)
def test_any_changed_byte_is_refused(tmp_path_factory: pytest.TempPathFactory, offset: int, change: int) -> None:
    """No single byte of an image file can differ without the reader noticing."""
    changed = bytearray(ENCODED)
    changed[offset] ^= change
    with pytest.raises(FormatError):
        read(bytes(changed), tmp_path_factory.getbasetemp())


@given(st.integers(0, len(ENCODED) - 1))
def test_any_truncation_is_refused(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    """A download that ended early is no image."""
    with pytest.raises(FormatError):
        read(ENCODED[:length], tmp_path_factory.getbasetemp())


@given(st.integers(0, layout.HEADER_BYTES + 11), st.binary(min_size=1, max_size=16))
def test_a_forged_header_is_refused_or_reads_the_same_sections(
    tmp_path_factory: pytest.TempPathFactory, offset: int, value: bytes
) -> None:
    """Whatever a header with a right CRC says, the measured bytes are the same or the file is refused."""
    base = tmp_path_factory.getbasetemp()
    end = layout.HEADER_BYTES + layout.SECTION_HEADER_BYTES
    try:
        image = read(patched(offset, value[: end - offset]), base)
    except FormatError:
        return
    assert image.pcrs == read(ENCODED, base).pcrs


K, C, R, S, M = (SectionType(number) for number in (1, 2, 3, 4, 5))
KERNEL, LINE, DISK, META = (K, b"k"), (C, b"c"), (R, b"r"), (M, b"{}")


@pytest.mark.parametrize(
    ("data", "error", "reason"),
    [
        (b"\x7fELF" + ENCODED[4:], FormatError, "does not begin with .eif"),
        (b"", FormatError, "does not begin with .eif"),
        (ENCODED[:100], FormatError, "cut short: 100 bytes"),
        (patched(4, b"\0\3"), UnsupportedError, "version 3"),
        (patched(6, b"\0\2"), FormatError, "unknown flags"),
        (patched(24, b"\0\1"), FormatError, "reserved"),
        (patched(26, b"\0\0"), FormatError, "0 sections"),
        (patched(26, b"\0\x21"), FormatError, "33 sections"),
        (patched(26, b"\0\4"), FormatError, "says where more lie"),
        (patched(FIRST_OFFSET, struct.pack(">Q", 549)), FormatError, "section 0: begins at byte 549"),
        (patched(FIRST_SIZE, struct.pack(">Q", 2**63)), FormatError, "section 0: ends at byte"),
        (patched(KERNEL_HEADER, b"\0\x09"), UnsupportedError, "section 0: unknown type 9"),
        (patched(KERNEL_HEADER + 2, b"\0\1"), FormatError, "section 0: unknown flags"),
        (patched(KERNEL_HEADER + 11, b"\0"), FormatError, "by its own header"),
        (with_crc(ENCODED + b"x"), FormatError, "1 bytes after the last section"),
        (ENCODED[:-1] + b"!", FormatError, "damaged: its CRC"),
        (assembled(LINE, META, DISK), FormatError, "0 sections of type kernel"),
        (assembled(KERNEL, META, DISK), FormatError, "0 sections of type command line"),
        (assembled(KERNEL, LINE, DISK), FormatError, "0 sections of type metadata"),
        (assembled(KERNEL, KERNEL, LINE, META, DISK), FormatError, "2 sections of type kernel"),
        (assembled(KERNEL, LINE, META), FormatError, "no ramdisk"),
        (assembled(LINE, KERNEL, META, DISK), FormatError, "not in this order"),
        (assembled(KERNEL, DISK, LINE, META), FormatError, "not in this order"),
        (assembled(KERNEL, LINE, META, DISK, (S, b"1"), (S, b"2")), FormatError, "more than one signature"),
        (assembled(KERNEL, LINE, META, (R, b"")), FormatError, "the ramdisk is empty"),
        (assembled(KERNEL, (C, b"a\x1b[2J"), META, DISK), FormatError, "not printable ASCII"),
        (assembled(KERNEL, (C, b"c" * 2049), META, DISK), TooLargeError, "2049 bytes are too many for a command line"),
        (assembled(KERNEL, LINE, (M, b"[]"), DISK), FormatError, "metadata: not a JSON object"),
        (assembled(KERNEL, LINE, (M, b"{"), DISK), FormatError, "metadata: not json"),
        (assembled(KERNEL, LINE, (M, b'{"a":1,"a":2}'), DISK), FormatError, "metadata: "),
        (assembled(KERNEL, LINE, META, DISK, (S, b"junk")), FormatError, "signature: not of the form"),
    ],
)
def test_a_malformed_file_is_refused_with_its_reason(
    data: bytes, error: type[FormatError], reason: str, tmp_path: Path
) -> None:
    """Each way of being malformed has an error that says what is wrong where."""
    with pytest.raises(error, match=reason) as raised:
        read(data, tmp_path)
    assert type(raised.value) is error


def test_a_file_that_claims_to_be_huge_is_refused_unread(tmp_path: Path) -> None:
    """A sparse file of 64 GiB costs the reader its header, not its length."""
    file = tmp_path / "huge.eif"
    with file.open("wb") as stream:
        stream.write(ENCODED)
        stream.truncate(64 << 30)
    with pytest.raises(TooLargeError):
        reader.read(file)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """An absent file is the caller's mistake, not a malformed image."""
    with pytest.raises(ConfigError, match=r"absent\.eif: No such file"):
        reader.read(tmp_path / "absent.eif")


@pytest.mark.parametrize("change", [{"command_line": "c" * 2049}, {"command_line": ""}, {"ramdisks": ()}])
def test_contents_that_no_reader_takes_are_not_written(change: dict[str, object]) -> None:
    """The writer holds itself to the reader's limits."""
    with pytest.raises((ConfigError, FormatError)):
        writer.encode(replace(CONTENTS, **change))  # type: ignore[arg-type]


def test_the_instance_register_follows_the_rule_of_six_signed_documents() -> None:
    """PCR4 of six real instances is SHA-384 over 48 zero bytes and the instance id: the same extension, unhashed."""
    known = json.loads((VECTORS / "eif" / "pcr-known-answers.json").read_text())["pcr4"]
    for each in known:
        assert hashlib.sha384(bytes(48) + each["instance_id"].encode()).hexdigest() == each["pcr4"]
    assert len(known) == 6
