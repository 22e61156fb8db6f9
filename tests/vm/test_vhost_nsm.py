"""The software NSM as a virtual device: the protocol, the driver's requests, and what a hostile guest gets."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.local_nsm import LocalNsm, create_pki
from infra.nsm_commands import MAX_REQUEST_BYTES, NsmCommands
from mrgc.attest.chain import load_root
from mrgc.attest.document import AttestationDocument
from mrgc.attest.verify import Policy, verify_enclave_document
from mrgc.errors import UntrustedChain
from tests.vm.conftest import PCRS, Device
from tests.vm.front_end import DESCRIPTORS, GUEST, REQUEST, RESPONSE, SIZE, USER, FrontEnd

NONCE: Final = b"n" * 32
values = st.recursive(
    st.integers() | st.binary() | st.text() | st.none(),
    lambda inner: st.dictionaries(st.text(max_size=9), inner, max_size=2) | st.lists(inner, max_size=2),
)
ATTEST: Final = {"Attestation": {"user_data": b"u", "nonce": NONCE, "public_key": None}}


def descriptors() -> int:
    """Return how many descriptors this process has."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def verified(document: bytes, pki: Path) -> AttestationDocument:
    """Verify a document under the test root and return what it says."""
    root = load_root((pki / "root.pem").read_bytes())
    policy = Policy(pcrs=PCRS, nonce=NONCE, max_age_s=300)
    return verify_enclave_document(document, root=root, at=datetime.now(UTC), policy=policy).document


@pytest.mark.parametrize("entries", [2, 4, 256])
@pytest.mark.parametrize("memory_at", [0, 0x10_0000])
def test_the_guest_gets_a_document_that_verifies(device: Device, pki: Path, entries: int, memory_at: int) -> None:
    """A request through the queue gives a signed document with the image's PCRs and the guest's own fields."""
    front = device.connect(entries=entries, memory_at=memory_at)
    front.start()
    document = verified(front.command(ATTEST)["Attestation"]["document"], pki)
    assert {index: document.pcrs[index] for index in PCRS} == PCRS
    assert (document.user_data, document.public_key) == (b"u", None)


def test_a_front_end_that_asks_for_no_acknowledgements_is_served(device: Device) -> None:
    """REPLY_ACK is offered, not demanded."""
    front = device.connect(reply_ack=False)
    front.start()
    assert front.command("DescribeNSM")["DescribeNSM"]["digest"] == "SHA384"


def test_random_bytes_come_in_the_only_form_that_linux_takes(front: FrontEnd) -> None:
    """The driver compares the head of the response byte for byte, and wants 256 bytes."""
    response = front.request(cbor2.dumps("GetRandom"))
    assert response[:-256] == bytes.fromhex("a16947657452616e646f6da16672616e646f6d590100")
    assert response != front.request(cbor2.dumps("GetRandom"))


def test_requests_go_on_when_the_ring_and_its_index_wrap(front: FrontEnd) -> None:
    """Queue indices are 16 bits: the 70,000th request is answered like the first."""
    for _ in range(70_000 // 2):
        front.request(b"\x6bDescribeNSM")
    assert front.command("DescribeNSM")["DescribeNSM"]["max_pcrs"] == 32


def test_request_and_response_may_share_one_chain(front: FrontEnd) -> None:
    """A driver that links both buffers is answered as well as Linux', which does not."""
    linked = cbor2.loads(front.request(cbor2.dumps("DescribeNSM"), chains=1))
    assert linked == front.command("DescribeNSM")


def test_a_request_waits_for_the_chain_of_its_response(front: FrontEnd) -> None:
    """The driver kicks once for both chains, but nothing keeps a kick from coming between them."""
    front.put(REQUEST, cbor2.dumps("DescribeNSM"))
    front.put(DESCRIPTORS, struct.pack("<QIHH", GUEST + REQUEST, 12, 0, 0))
    front.put(DESCRIPTORS + 16, struct.pack("<QIHH", GUEST + RESPONSE, 0x3000, 2, 0))
    front.offer(0)
    front.offer(1)
    front.wait(2)
    assert b"DescribeNSM" in front.get(RESPONSE, 32)


def test_registers_of_the_guest_are_extended_and_locked(front: FrontEnd, pki: Path) -> None:
    """PCR16 and up are the guest's: extended by the published rule, in documents once locked, then fixed."""
    extended = front.command({"ExtendPCR": {"index": 16, "data": b"config"}})
    value = hashlib.sha384(bytes(48) + b"config").digest()
    assert extended == {"ExtendPCR": {"data": value}}
    assert 16 not in verified(front.command(ATTEST)["Attestation"]["document"], pki).pcrs
    assert front.command({"LockPCR": {"index": 16}}) == "LockPCR"
    assert verified(front.command(ATTEST)["Attestation"]["document"], pki).pcrs[16] == value
    assert front.command({"ExtendPCR": {"index": 16, "data": b"x"}}) == {"Error": "ReadOnlyIndex"}
    assert front.command({"DescribePCR": {"index": 16}}) == {"DescribePCR": {"lock": True, "data": value}}
    assert front.command({"LockPCRs": {"range": 20}}) == "LockPCRs"
    assert front.command("DescribeNSM")["DescribeNSM"]["locked_pcrs"] == list(range(20))


def test_another_boot_has_fresh_registers(device: Device) -> None:
    """What a guest extended and locked ends with its connection."""
    first, second = device.connect(), device.connect()
    for front in (first, second):
        front.start()
    first.command({"LockPCRs": {"range": 32}})
    assert second.command("DescribeNSM")["DescribeNSM"]["locked_pcrs"] == list(range(16))


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"ExtendPCR": {"index": 0, "data": b"x"}}, "ReadOnlyIndex"),
        ({"LockPCR": {"index": 15}}, "ReadOnlyIndex"),
        ({"DescribePCR": {"index": 32}}, "InvalidIndex"),
        ({"DescribePCR": {"index": -1}}, "InvalidIndex"),
        ({"DescribePCR": {"index": "0"}}, "InvalidArgument"),
        ({"DescribePCR": {}}, "InvalidArgument"),
        ({"ExtendPCR": {"index": 16}}, "InvalidArgument"),
        ({"LockPCRs": {"range": 33}}, "InvalidIndex"),
        ({"Attestation": {"user_data": b"x" * 1025}}, "InputTooLarge"),
        ({"Attestation": {"nonce": "text"}}, "InvalidArgument"),
        ({"Attestation": None}, "InvalidArgument"),
        ({"DescribeNSM": {}}, "InvalidOperation"),
        ({"Unknown": {}}, "InvalidOperation"),
        ({"LockPCR": {}, "LockPCRs": {}}, "InvalidOperation"),
        ("Unknown", "InvalidOperation"),
        ([], "InvalidOperation"),
        (None, "InvalidOperation"),
    ],
)
def test_a_wrong_request_is_answered_with_the_nsms_error(front: FrontEnd, request_: Any, error: str) -> None:
    """Every refusal has the name that the real module uses, and the device goes on."""
    assert front.command(request_) == {"Error": error}
    assert "DescribeNSM" in front.command("DescribeNSM")


@given(st.one_of(st.binary(max_size=200), values.map(cbor2.dumps)))
def test_any_bytes_have_an_answer(pki: Path, request_: bytes) -> None:
    """Whatever a guest asks, the answer is CBOR and fits the driver's buffer."""
    commands = NsmCommands(LocalNsm(pki, PCRS))
    response = commands.answer(request_)
    assert len(response) <= 0x3000
    cbor2.loads(response)


def test_a_request_over_the_drivers_limit_is_refused(front: FrontEnd) -> None:
    """4,096 bytes is what Linux passes on; a guest that writes the ring itself gets no further."""
    assert front.command({"Attestation": {"user_data": b"x" * MAX_REQUEST_BYTES}}) == {"Error": "InputTooLarge"}


def test_the_queue_is_taken_back_and_given_again(front: FrontEnd) -> None:
    """A driver that resets gets its index back and goes on where it was."""
    front.command("DescribeNSM")
    assert front.stop() == 2
    front.tell(10, struct.pack("<II", 0, 2))
    front.tell(18, struct.pack("<II", 0, 1))
    assert "DescribeNSM" in front.command("DescribeNSM")


def test_an_interrupt_is_not_lost_when_its_descriptor_is_replaced(front: FrontEnd) -> None:
    """QEMU replaces the call descriptor once the guest drives it; what was answered before is signalled again."""
    front.command("DescribeNSM")
    fresh = os.eventfd(0, os.EFD_NONBLOCK)
    front.tell(13, struct.pack("<Q", 0), [fresh])
    assert os.eventfd_read(fresh) == 1
    os.close(fresh)


@pytest.mark.parametrize(
    "descriptor",
    [
        struct.pack("<QIHH", 0, 16, 0, 0),
        struct.pack("<QIHH", GUEST + SIZE - 8, 16, 0, 0),
        struct.pack("<QIHH", 2**64 - 8, 16, 0, 0),
        struct.pack("<QIHH", GUEST, 2**32 - 1, 0, 0),
        struct.pack("<QIHH", GUEST + REQUEST, 1, 1, 0),
        struct.pack("<QIHH", GUEST + REQUEST, 1, 1, 9),
        struct.pack("<QIHH", GUEST + REQUEST, 1, 4, 0),
    ],
    ids=["unmapped", "over the end", "wrapping", "huge", "endless", "outside the table", "indirect"],
)
def test_a_chain_that_leads_astray_ends_the_connection(front: FrontEnd, descriptor: bytes) -> None:
    """No address of a hostile guest is followed out of its own memory, and no chain without end."""
    front.put(DESCRIPTORS, descriptor)
    front.offer(0)
    assert front.ended()


def test_a_head_outside_the_table_ends_the_connection(front: FrontEnd) -> None:
    """A ring entry is checked before it is an index."""
    front.offer(60_000)
    assert front.ended()


def test_a_response_without_room_ends_the_connection(front: FrontEnd) -> None:
    """A response is never cut short silently."""
    front.put(REQUEST, cbor2.dumps("GetRandom"))
    front.put(DESCRIPTORS, struct.pack("<QIHH", GUEST + REQUEST, 10, 1, 1))
    front.put(DESCRIPTORS + 16, struct.pack("<QIHH", GUEST + RESPONSE, 8, 2, 0))
    front.offer(0)
    assert front.ended()


@pytest.mark.parametrize(
    "message",
    [
        struct.pack("<III", 99, 1, 0),
        struct.pack("<III", 5, 1, 1 << 30),
        struct.pack("<III", 5, 1, 8) + struct.pack("<II", 1, 0),
        struct.pack("<III", 8, 1, 3) + b"abc",
        struct.pack("<III", 18, 1, 8) + struct.pack("<II", 0, 1),
    ],
    ids=["unknown", "huge", "no file", "short", "no queue"],
)
def test_a_message_that_breaks_the_protocol_ends_the_connection(device: Device, message: bytes) -> None:
    """Nothing is allocated for a length, nor served before it was set up."""
    front = device.connect()
    front.sock.sendall(message)
    assert front.ended()


@pytest.mark.parametrize(
    ("message", "payload"),
    [
        (8, struct.pack("<II", 0, 3)),
        (8, struct.pack("<II", 0, 0)),
        (8, struct.pack("<II", 0, 1 << 20)),
        (9, struct.pack("<IIQQQQ", 0, 0, USER + SIZE, USER, USER, 0)),
    ],
    ids=["no power of two", "zero", "too many", "outside"],
)
def test_a_queue_that_cannot_be_ends_the_connection(front: FrontEnd, message: int, payload: bytes) -> None:
    """Size and place of the ring are checked before it is touched."""
    front.stop()
    front.tell(message, payload)
    front.sock.sendall(struct.pack("<III", 18, 1, 8) + struct.pack("<II", 0, 1))
    assert front.ended()


@pytest.mark.parametrize("size", [2 * SIZE, 2**63, 2**64 - 1])
def test_memory_that_its_file_does_not_have_ends_the_connection(device: Device, size: int) -> None:
    """A region longer than its file would end the process at its first touch."""
    front = device.connect()
    with pytest.raises(AssertionError, match="the back end left"):
        front.tell(5, struct.pack("<IIQQQQ", 1, 0, GUEST, size, USER, 0), [front.file])


def test_a_front_end_that_leaves_inside_a_message_leaves_nothing(device: Device) -> None:
    """QEMU may be killed at any moment: the back end ends, and its descriptors with it."""
    before, threads = descriptors(), set(threading.enumerate())
    front = device.connect()
    front.start()
    front.sock.sendall(b"\1")
    device.end()
    assert set(threading.enumerate()) <= threads
    assert descriptors() == before


def test_a_document_of_the_device_names_no_aws_root(front: FrontEnd, tmp_path: Path) -> None:
    """Its root is its own: under another root of the same kind the document is refused."""
    create_pki(tmp_path / "other")
    with pytest.raises(UntrustedChain):
        verified(front.command(ATTEST)["Attestation"]["document"], tmp_path / "other")
