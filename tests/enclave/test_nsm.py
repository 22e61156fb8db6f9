from __future__ import annotations

import ctypes
import fcntl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import pytest

from enclave.nsm import NsmDevice, NsmError, answer_field, encode_attestation

Driver = Callable[[bytes], bytes]


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Driver], NsmDevice]:
    """Return an NsmDevice whose ioctl is answered as drivers/misc/nsm.c does it, at the same addresses."""

    def install(driver: Driver) -> NsmDevice:
        def ioctl(_fd: int, number: int, raw: bytearray, mutate: bool) -> int:
            assert number == 0xC0200A00
            assert mutate
            assert len(raw) == 32
            request_at, request_bytes, response_at, capacity = struct.unpack("@QQQQ", raw)
            answer = driver(ctypes.string_at(request_at, request_bytes))
            ctypes.memmove(response_at, answer, min(len(answer), capacity))
            raw[24:] = struct.pack("@Q", min(len(answer), capacity))
            return 0

        monkeypatch.setattr(fcntl, "ioctl", ioctl)
        device = tmp_path / "nsm"
        device.touch()
        return NsmDevice(str(device))

    return install


def test_an_attestation_request_has_the_three_fields(drive: Callable[[Driver], NsmDevice]) -> None:
    """The request is what aws-nitro-enclaves-nsm-api encodes, with null for what is absent."""
    seen: list[Any] = []

    def driver(request: bytes) -> bytes:
        seen.append(cbor2.loads(request))
        return cbor2.dumps({"Attestation": {"document": b"d" * 5_000}})

    assert drive(driver).attest(public_key=b"k", user_data=None, nonce=b"n") == b"d" * 5_000
    assert seen == [{"Attestation": {"user_data": None, "nonce": b"n", "public_key": b"k"}}]


def test_random_bytes_come_in_pieces_of_at_most_256(drive: Callable[[Driver], NsmDevice]) -> None:
    """GetRandom answers at most 256 bytes, so a longer wish is asked for again."""
    asked = []

    def driver(request: bytes) -> bytes:
        asked.append(cbor2.loads(request))
        return cbor2.dumps({"GetRandom": {"random": bytes([len(asked)]) * 256}})

    assert drive(driver).random(300) == b"\x01" * 256 + b"\x02" * 44
    assert asked == ["GetRandom", "GetRandom"]


@pytest.mark.parametrize(
    "answer",
    [
        cbor2.dumps({"Error": "InputTooLarge"}),
        cbor2.dumps({"Attestation": {}}),
        cbor2.dumps({"Attestation": {"document": "text"}}),
        cbor2.dumps({"Attestation": {"document": b""}}),
        cbor2.dumps({"GetRandom": {"random": b"x"}}),
        cbor2.dumps("Attestation"),
        b"\xff",
        b"",
    ],
)
def test_another_answer_is_an_error_of_its_own(drive: Callable[[Driver], NsmDevice], answer: bytes) -> None:
    """An error, another shape, or nothing at all raises NsmError."""
    device = drive(lambda _request: answer)
    with pytest.raises(NsmError):
        device.attest(public_key=None, user_data=None, nonce=None)


def test_the_length_is_the_drivers_not_the_buffers(drive: Callable[[Driver], NsmDevice]) -> None:
    """An answer longer than the buffer arrives cut, and a cut answer is an error, not a short document."""
    device = drive(lambda _request: cbor2.dumps({"Attestation": {"document": bytes(0x3000)}}))
    with pytest.raises(NsmError):
        device.attest(public_key=None, user_data=None, nonce=None)


def test_a_field_over_its_limit_is_not_sent() -> None:
    """1,024 bytes pass, one more is refused before the device sees it."""
    assert len(encode_attestation(public_key=bytes(1_024), user_data=bytes(1_024), nonce=bytes(1_024))) <= 4_096
    with pytest.raises(NsmError):
        encode_attestation(public_key=bytes(1_025), user_data=None, nonce=None)


def test_without_a_device_there_is_no_nsm(tmp_path: Path) -> None:
    """Outside an enclave construction fails; nothing is made up in its place."""
    with pytest.raises(NsmError):
        NsmDevice(str(tmp_path / "absent"))


def test_a_device_that_is_no_nsm_fails() -> None:
    """The ioctl of another character device is refused by the kernel, and that is an NsmError."""
    device = NsmDevice("/dev/null")
    with pytest.raises(NsmError):
        device.random(1)


def test_a_refusal_names_the_nsms_reason() -> None:
    """The NSM's own error name is kept for the log, bounded."""
    with pytest.raises(NsmError, match="InvalidOperation"):
        answer_field(cbor2.dumps({"Error": "InvalidOperation"}), "Attestation", "document")
