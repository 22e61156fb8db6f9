"""The engine's connection to the enclave, against the product's own enclave."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mrgc.errors import AuthenticationError, EnclaveError, EnclaveUnreachable, TokenError
from mrgc.wire import frames
from mrgc.wire.addresses import UnixAddress, listen
from mrgc.wire.enclave_protocol import Health, Op, Opened, health_response
from tests.enclave.stack import seal_request
from tests.engine.host import Host
from tests.waiting import until
from worker.engine.enclave_client import EnclaveClient


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """The client's clock."""
    return Clock()


@pytest.fixture
def client(host: Host, clock: Clock) -> Iterator[EnclaveClient]:
    """A client of the host's enclave address, not connected yet."""
    made = EnclaveClient(host.enclave, host.token_file, clock=clock)
    yield made
    made.close()


def test_it_connects_on_the_first_request(host: Host, client: EnclaveClient) -> None:
    """Health, token, hello, then the request; the boot id is known from there on."""
    boot = host.boot()
    (opened,) = client.open_batch([host.job()])
    assert isinstance(opened, Opened)
    assert bytes(opened.plaintext) == b'{"inputs": ["x"]}'
    assert (client.boot, client.reason) == (boot, "")


def test_a_forged_job_has_an_outcome_of_its_own(host: Host, client: EnclaveClient) -> None:
    """One bad tag between two good jobs is one refusal."""
    host.boot()
    forged = bytearray(host.job())
    forged[-1] ^= 1
    first, second, third = client.open_batch([host.job(), forged, host.job()])
    assert isinstance(second, AuthenticationError)
    assert isinstance(first, Opened)
    assert isinstance(third, Opened)


def test_what_it_opened_it_seals(host: Host, client: EnclaveClient) -> None:
    """The ticket of an opened job buys a sealed result."""
    host.boot()
    job = host.job()
    (opened,) = client.open_batch([job])
    assert isinstance(opened, Opened)
    (sealed,) = client.seal_batch([seal_request(opened, job)])
    assert isinstance(sealed, memoryview)


def test_without_an_enclave_every_call_fails_and_says_why(host: Host, client: EnclaveClient) -> None:
    """The health message shows the reason."""
    with pytest.raises(EnclaveUnreachable):
        client.open_batch([host.job()])
    assert client.reason == "enclave does not listen"
    assert client.boot == ""


def test_it_leaves_the_first_hello_to_the_agent(host: Host, client: EnclaveClient, clock: Clock) -> None:
    """An engine that is faster than the agent must not lock the enclave with a stale token."""
    host.token_file.write_bytes(b"\x01" * 32)
    host.boot(with_agent=False)
    with pytest.raises(EnclaveUnreachable):
        client.open_batch([host.job()])
    assert client.reason == "enclave waits for its agent"
    host.act_as_agent()
    clock.now_s += client.pause_s()
    client.tend()
    assert client.reason == ""


@pytest.mark.parametrize("content", [b"\x01" * 32, b"short", None])
def test_a_wrong_or_missing_token_is_a_reason_and_not_the_end(
    host: Host, client: EnclaveClient, clock: Clock, content: bytes | None
) -> None:
    """Once the file holds the right token the next attempt succeeds."""
    host.boot()
    right = host.token_file.read_bytes()
    host.token_file.unlink()
    if content is not None:
        host.token_file.write_bytes(content)
    client.tend()
    assert "token" in client.reason
    host.token_file.write_bytes(right)
    clock.now_s += client.pause_s()
    client.tend()
    assert client.reason == ""


def test_between_attempts_calls_fail_at_once(host: Host, client: EnclaveClient, clock: Clock) -> None:
    """An outage does not make every job wait for a connection; an enclave that is back is found after the pause."""
    client.tend()
    pause_s = client.pause_s()
    assert pause_s > 0
    host.boot()
    with pytest.raises(EnclaveUnreachable):
        client.open_batch([host.job()])
    clock.now_s += pause_s
    assert isinstance(client.open_batch([host.job()])[0], Opened)
    assert client.pause_s() == 0


def test_pauses_grow_to_their_cap(client: EnclaveClient, clock: Clock) -> None:
    """A long outage costs an attempt every second or two."""
    pauses = []
    for _ in range(12):
        client.tend()
        pauses.append(client.pause_s())
        clock.now_s += pauses[-1]
    assert pauses[0] <= 0.05
    assert all(1.0 <= pause <= 2.0 for pause in pauses[-4:])


def test_a_request_that_finds_its_connection_dead_is_repeated_on_a_fresh_one(host: Host, client: EnclaveClient) -> None:
    """A restart of the enclave between two batches costs no job a retry."""
    first = host.boot()
    client.open_batch([host.job()])
    second = host.boot()
    assert isinstance(client.open_batch([host.job()])[0], Opened)
    assert client.boot == second != first


def test_tending_notices_an_enclave_that_went_away(host: Host, client: EnclaveClient) -> None:
    """An idle engine says `waiting` before the next job finds out."""
    host.boot()
    client.tend()
    host.shut_down()
    client.tend()
    assert client.reason
    assert client.boot == ""


def test_tending_keeps_a_sound_connection(host: Host, client: EnclaveClient) -> None:
    """Looking after a connection does not use it up."""
    boot = host.boot()
    for _ in range(3):
        client.tend()
    assert client.boot == boot
    assert isinstance(client.open_batch([host.job()])[0], Opened)


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[Callable[[Callable[[socket.socket], None]], UnixAddress]]:
    """Serve one connection with a function that misbehaves."""
    address = UnixAddress(tmp_path / "impostor.sock")
    listener = listen(address, backlog=4)
    threads = []

    def start(behave: Callable[[socket.socket], None]) -> UnixAddress:
        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(20)
                behave(sock)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return address

    yield start
    for thread in threads:
        thread.join(20)
    listener.close()


def greet(sock: socket.socket) -> None:
    """Answer health and hello as an enclave does."""
    health = Health("00" * 8, hello=True, attestation_ready=True, kms_ready=True, connections=1, uptime_s=1)
    frames.send(sock, health_response(frames.recv(sock).id, health))
    frames.send(sock, frames.encode(Op.HELLO, frames.recv(sock).id, {}))


def answer(frame_id_shift: int = 0, **fields: object) -> Callable[[socket.socket], None]:
    """Greet, then answer the first request in this way."""

    def behave(sock: socket.socket) -> None:
        greet(sock)
        request = frames.recv(sock)
        frames.send(sock, frames.encode(Op.OPEN_BATCH, request.id + frame_id_shift, fields))

    return behave


def cut(sock: socket.socket) -> None:
    """Greet, then end inside the answer's frame."""
    greet(sock)
    frames.recv(sock)
    sock.sendall(b"\x00\x00\x01\x00half")


def babble(sock: socket.socket) -> None:
    """Greet, then send what is no frame."""
    greet(sock)
    frames.recv(sock)
    sock.sendall(b"\x00\x00\x00\x08\x00\x00\x00\x04\xff\xff\xff\xff")


@pytest.mark.parametrize(
    "behave",
    [
        cut,
        babble,
        answer(frame_id_shift=1, outcomes=[]),
        answer(outcomes=[]),
        answer(outcomes=[{"ok": 1}]),
        answer(outcomes=[{"code": 7}]),
        answer(surprise=1),
    ],
)
def test_an_enclave_that_breaks_the_protocol_is_dropped(
    impostor: Callable[[Callable[[socket.socket], None]], UnixAddress],
    host: Host,
    clock: Clock,
    behave: Callable[[socket.socket], None],
) -> None:
    """No answer of a peer is taken on trust; the connection it came from is not used again."""
    host.token_file.write_bytes(bytes(32))
    client = EnclaveClient(impostor(behave), host.token_file, clock=clock)
    with pytest.raises(EnclaveError):
        client.open_batch([b"job"])
    assert client.boot == ""
    client.close()


def test_a_code_for_the_whole_request_is_raised_as_its_error(
    impostor: Callable[[Callable[[socket.socket], None]], UnixAddress], host: Host, clock: Clock
) -> None:
    """The stage turns it into the outcome of every job."""
    host.token_file.write_bytes(bytes(32))
    client = EnclaveClient(impostor(answer(code="no_token")), host.token_file, clock=clock)
    with pytest.raises(TokenError):
        client.open_batch([b"job"])
    client.close()


def test_an_enclave_without_room_for_a_connection_is_tried_again_later(host: Host, clock: Clock) -> None:
    """The enclave's refusal at its bound reaches the reason, not a job."""
    host.boot()
    crowd = []
    try:
        for _ in range(70):
            client = EnclaveClient(host.enclave, host.token_file, clock=clock)
            client.tend()
            crowd.append(client)
        assert any(each.reason for each in crowd)
    finally:
        for each in crowd:
            each.close()
    late = EnclaveClient(host.enclave, host.token_file)

    def is_connected() -> bool:
        late.tend()
        return not late.reason

    until(is_connected, within_s=20, what="room for a connection")
    late.close()
