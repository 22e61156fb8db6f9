from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave.connection import MAX_STRANGER_FRAME_BYTES, Limits
from enclave.frame_budget import FREE_BYTES, FrameBudget
from enclave.server import MAX_CONNECTIONS
from infra.local_nsm import LocalNsm
from mrgc.wire import enclave_protocol, frames
from mrgc.wire.addresses import UnixAddress, connect
from mrgc.wire.enclave_protocol import Op
from tests.enclave.stack import PCRS, Caller, Kms, RunningEnclave
from tests.waiting import until

HEALTH = enclave_protocol.plain_request(1, Op.HEALTH)


@pytest.fixture
def impatient(tmp_path: Path, pki: Path, kms: Kms) -> Iterator[RunningEnclave]:
    """Run an enclave that waits a fraction of a second for its peers."""
    limits = Limits(frame_s=0.3, stranger_s=0.3)
    with RunningEnclave(tmp_path / "i.sock", LocalNsm(pki, PCRS), kms, limits=limits) as running:
        yield running


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", 0),
        struct.pack(">I", frames.MAX_FRAME_BYTES + 1),
        struct.pack(">I", 0xFFFFFFFF),
        struct.pack(">I", 1) + b"\x00",
        struct.pack(">II", 4, 0),
        struct.pack(">II", 5, 2) + b"\xa0",
        struct.pack(">II", 5, 1) + b"\xff",
        struct.pack(">II", 5, 1) + b"\xa0",
        struct.pack(">II", 8, 0xFFFFFFFF) + bytes(4),
        struct.pack(">II", 5 + 64, 65) + b"\x81" * 65,
        b"".join(bytes(part) for part in frames.encode("x" * 33, 1, {})),
        b"".join(bytes(part) for part in HEALTH)[:-1] + b"\x01",
        b"GET / HTTP/1.1\r\nHost: enclave\r\n\r\n",
    ],
    ids=lambda data: data[:12].hex(),
)
def test_a_connection_that_breaks_framing_is_closed_and_no_other(enclave: RunningEnclave, data: bytes) -> None:
    """A stream that is out of step gets no answer and no second chance; its neighbours are served."""
    with enclave.serving() as engine, enclave.caller() as broken:
        broken.hello()
        broken.sock.sendall(data)
        assert broken.is_closed()
        assert engine.health().hello


def test_a_stranger_may_send_only_small_frames(enclave: RunningEnclave) -> None:
    """Statement 10: before its hello a peer cannot make the enclave hold more than 4 KiB; with the token it can."""
    with enclave.caller() as stranger, enclave.caller() as engine:
        stranger.sock.sendall(struct.pack(">I", MAX_STRANGER_FRAME_BYTES + 1))
        assert stranger.is_closed()
        engine.hello()
        assert engine.open_codes([bytes(MAX_STRANGER_FRAME_BYTES + 1)]) == ["bad_format"]


@pytest.mark.parametrize("sent", [b"\x00", b"\x00\x00\x00", struct.pack(">II", 1_000, 1) + b"\xa0"])
def test_a_half_sent_frame_is_cut_at_its_deadline(impatient: RunningEnclave, sent: bytes) -> None:
    """Statement 10: from its first byte on, a frame has one deadline, token or not."""
    with impatient.serving() as engine, impatient.caller() as stranger:
        for peer in (engine, stranger):
            peer.sock.sendall(sent)
        assert engine.is_closed()
        assert stranger.is_closed()


def test_a_dripped_frame_is_cut_all_the_same(impatient: RunningEnclave) -> None:
    """Statement 10: a byte now and then does not extend the deadline."""
    with impatient.serving() as engine:
        engine.sock.sendall(struct.pack(">I", 10_000))
        until(lambda: _drip(engine.sock), within_s=10, what="the connection to be cut")


def _drip(sock: socket.socket) -> bool:
    try:
        sock.sendall(b"\x00")
    except ConnectionError:
        return True
    return False


def test_a_silent_stranger_leaves_and_a_silent_engine_stays(impatient: RunningEnclave) -> None:
    """Only peers with the token may be idle for longer than the limit."""
    with impatient.serving() as engine, impatient.caller() as stranger:
        assert stranger.is_closed()
        assert engine.health().hello


def test_a_peer_that_takes_no_answer_is_cut(impatient: RunningEnclave, kms: Kms) -> None:
    """An answer that nobody reads does not hold its memory for ever."""
    key = kms.data_key()
    with impatient.serving() as engine, impatient.serving() as other:
        engine.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        frames.send(engine.sock, enclave_protocol.open_batch_request(1, [key.job(bytes(4 << 20))]))
        until(lambda: other.health().connections == 1, within_s=10, what="the connection to be cut")


def test_connections_are_bounded_and_strangers_make_room(enclave: RunningEnclave) -> None:
    """Statement 10: at the bound a newcomer is told busy and the oldest stranger leaves, for the next one."""
    strangers = [enclave.caller() for _ in range(MAX_CONNECTIONS)]
    until(lambda: strangers[-1].health().connections == MAX_CONNECTIONS, within_s=10, what="all to be accepted")
    with enclave.caller() as refused:
        answered = frames.recv(refused.sock)
        assert answered.header == {"code": "busy"}
        assert refused.is_closed()
    assert strangers[0].is_closed()
    until(lambda: strangers[-1].health().connections < MAX_CONNECTIONS, within_s=10, what="the oldest to leave")
    with enclave.serving() as engine:
        assert engine.health().hello
    for stranger in strangers:
        stranger.sock.close()


def test_engines_fill_the_bound_and_are_not_thrown_out(enclave: RunningEnclave) -> None:
    """Connections with the token are never cut for a newcomer."""
    engines = [enclave.caller() for _ in range(MAX_CONNECTIONS)]
    assert [engine.hello() for engine in engines] == [None] * MAX_CONNECTIONS
    with enclave.caller() as refused:
        assert frames.recv(refused.sock).header == {"code": "busy"}
    assert all(engine.health().hello for engine in engines)
    for engine in engines:
        engine.sock.close()


def test_requests_on_many_connections_are_served_at_once(enclave: RunningEnclave, kms: Kms) -> None:
    """Sixteen connections open batches concurrently; each gets its own answers, and KMS one call."""
    key, before = kms.data_key(), kms.decrypts()
    failures: list[object] = []

    def work(number: int) -> None:
        with enclave.serving() as engine:
            for turn in range(5):
                text = f"{number}-{turn}".encode()
                opened = engine.open([key.job(text) for _ in range(8)])
                failures.extend(o for o in opened if bytes(getattr(o, "plaintext", b"")) != text)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert kms.decrypts() == before + 1


def test_stopping_ends_idle_and_half_sent_connections(tmp_path: Path, pki: Path, kms: Kms) -> None:
    """Stop returns although peers are connected, and the listener is gone."""
    path = tmp_path / "s.sock"
    with RunningEnclave(path, LocalNsm(pki, PCRS), kms) as running, running.serving() as idle, running.caller() as half:
        half.sock.sendall(b"\x00\x00")
        running.stop()
        assert idle.is_closed()
        assert half.is_closed()
    with pytest.raises(ConnectionRefusedError):
        connect(UnixAddress(path), timeout_s=1)


def test_two_frames_are_never_each_half_admitted() -> None:
    """Request and answer are admitted in one step: what does not fit waits, and small frames pass by."""
    budget = FrameBudget(capacity_bytes=1_000_000)
    order: list[str] = []
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with budget.admitted(400_000):
            inside.set()
            assert leave.wait(10)
            order.append("first leaves")

    def second() -> None:
        with budget.admitted(300_000):
            order.append("second enters")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    until(lambda: len(budget._line) == 1, within_s=10, what="the second to wait")
    with budget.admitted(FREE_BYTES):
        order.append("health passes")
    leave.set()
    for thread in threads:
        thread.join(10)
    assert order == ["health passes", "first leaves", "second enters"]
    assert budget._left == 1_000_000


def test_frames_wait_in_order_of_arrival() -> None:
    """A large frame is not overtaken by those that would fit: it would wait for ever."""
    budget = FrameBudget(capacity_bytes=1_000_000)
    entered: list[str] = []
    threads: list[threading.Thread] = []

    def enter(name: str, length: int) -> None:
        with budget.admitted(length):
            entered.append(name)

    def are_waiting() -> bool:
        return len(budget._line) == len(threads)

    with budget.admitted(200_000):
        for name, length in (("large", 450_000), ("small", 100_000)):
            threads.append(threading.Thread(target=enter, args=(name, length)))
            threads[-1].start()
            until(are_waiting, within_s=10, what="a place in the line")
        assert entered == []
    for thread in threads:
        thread.join(10)
    assert entered == ["large", "small"]


def test_a_closed_budget_turns_waiters_away() -> None:
    """Whoever waits for memory when the enclave stops is let go."""
    budget = FrameBudget(capacity_bytes=200_000)
    refused = threading.Event()

    def wait() -> None:
        try:
            with budget.admitted(100_000):
                pass
        except ConnectionError:
            refused.set()

    with budget.admitted(100_000):
        thread = threading.Thread(target=wait)
        thread.start()
        until(lambda: len(budget._line) == 1, within_s=10, what="the waiter")
        budget.close()
        assert refused.wait(10)
    thread.join(10)


def test_plaintext_is_overwritten_when_its_frame_is_done(
    caller: Caller, kms: Kms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every buffer that held an opened job is zero after the answer left."""
    sent: list[object] = []
    send = frames.send

    def spy(sock: socket.socket, buffers: list[object], **options: int) -> None:
        sent.extend(buffers)
        send(sock, buffers, **options)  # type: ignore[arg-type]

    job = kms.data_key().job(b"canary" * 100)
    request = enclave_protocol.open_batch_request(1, [job])
    monkeypatch.setattr("enclave.connection.frames.send", spy)
    caller.sock.sendall(b"".join(bytes(part) for part in request))
    assert bytes(frames.recv(caller.sock).blobs[0]) == b"canary" * 100
    until(lambda: bytearray(600) in sent, within_s=5, what="the plaintext to be overwritten")
