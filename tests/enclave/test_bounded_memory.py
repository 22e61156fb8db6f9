"""The enclave's own process under floods: how much memory it has ever held, as the kernel counts it."""

from __future__ import annotations

import base64
import json
import re
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from enclave.frame_budget import CAPACITY_BYTES, HEADERS_BYTES
from mrgc.wire import frames
from mrgc.wire.addresses import UnixAddress, connect
from tests.enclave.stack import REPOSITORY, Caller, Kms
from tests.waiting import until

#: Beside frames and headers: threads, caches, and what the allocator keeps.
SPARE_BYTES: Final = 64 << 20
AT_ONCE: Final = 8


class EnclaveProcess:
    """A `python -m infra.local_enclave`, hardened like the production enclave."""

    def __init__(self, path: Path, pki: Path, kms: Kms) -> None:
        self.path = path
        command = [sys.executable, "-m", "infra.local_enclave", "--listen", f"unix:{path}", "--nsm", str(pki)]
        self.process = subprocess.Popen([*command, "--kms-port", str(kms.port), "--ca", str(kms.ca)], cwd=REPOSITORY)
        until(path.is_socket, within_s=30, what="the enclave to listen")

    def peak_bytes(self) -> int:
        """Return the most that was ever resident: proc(5), VmHWM."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) << 10


@pytest.fixture
def running(tmp_path: Path, pki: Path, kms: Kms) -> Iterator[EnclaveProcess]:
    """Run an enclave in a process of its own, which serves the JSON protocol to everybody."""
    started = EnclaveProcess(tmp_path / "e.sock", pki, kms)
    try:
        with Caller(started.path) as agent:
            assert agent.hello(json_protocol=True) is None
            assert agent.credentials() is None
            yield started
    finally:
        started.process.terminate()
        assert started.process.wait(20) == 0


def frame(body: bytes) -> bytes:
    """Put a length before a body."""
    return struct.pack(">I", len(body)) + body


def binary(header: bytes, blobs: bytes = b"") -> bytes:
    """Lay out a binary frame."""
    return frame(struct.pack(">I", len(header)) + header + blobs)


def whole(op: str, blobs: list[bytes]) -> bytes:
    """Lay out a well-formed request."""
    return b"".join(bytes(part) for part in frames.encode(op, 1, {}, blobs))


def deep_json(count: int) -> bytes:
    """Nest lists in a request of the JSON protocol."""
    return frame(b'{"action": ' + b"[" * count + b"]" * count + b"}")


#: Oversize, bombs and malformed input, by what they aim at.
FLOODS: Final = {
    "a full frame of one job": whole("open_batch", [bytes((64 << 20) - 100)]),
    "a full frame of tiny jobs": whole("open_batch", [b"mrgc"] * 1_024),
    "a claim of 4 GiB": b"\xff\xff\xff\xff" + bytes(1 << 20),
    "a header that claims 4 GiB": frame(b"\xff\xff\xff\xff" + bytes(1 << 20)),
    "an array that claims 2^63 elements": binary(b"\x9b" + b"\x7f" * 8 + bytes(1 << 19)),
    "a million nested arrays": binary(b"\x81" * (1 << 20)),
    "a million empty maps": binary(b"\x9a\x00\x0f\xff\x00" + b"\xa0" * 0xFFF00),
    "sizes that sum to more": binary(bytes.fromhex("a3626964016264aa") + b"\x00" * 64, bytes(1 << 20)),
    "a result's header as long as it may be": whole("seal_batch", [bytes(16 << 20), bytes(16 << 20)]),
    "json of one payload of 16 MiB": frame(
        json.dumps({"action": "decrypt", "encrypted_payload": base64.b64encode(bytes(11 << 20)).decode()}).encode()
    ),
    "json over its cap": frame(b'{"a": "' + b"x" * (48 << 20) + b'"}'),
    "json nested a million deep": deep_json(1 << 20),
    "json of a million members": frame(b"{" + b",".join(b'"%d":0' % n for n in range(1 << 20)) + b"}"),
    "json of eight million values": frame(b'{"action": [' + b"0," * (7 << 20) + b"0]}"),
    "json without an end": frame(b'{"action": "' + b'\\"' * (4 << 20)),
}


def flood(path: Path, data: bytes) -> None:
    """Send bytes and read what comes until the enclave answers or hangs up; with the token, so that all are read."""
    with Caller(path) as caller:
        assert caller.hello() is None
        try:
            caller.sock.sendall(data)
            caller.sock.shutdown(socket.SHUT_WR)
            while caller.sock.recv(1 << 20):
                pass
        except (ConnectionError, TimeoutError):
            pass


@pytest.mark.timeout(120)
def test_floods_stay_within_the_budgets_of_memory(running: EnclaveProcess) -> None:
    """Statement 10: oversize, bomb and malformed requests, many at once, take no more than frames and headers may."""
    before = running.peak_bytes()
    heaviest = [FLOODS["a full frame of one job"], FLOODS["a million empty maps"]]
    queue = [*FLOODS.values(), *heaviest * AT_ONCE]
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if not queue:
                    return
                data = queue.pop()
            flood(running.path, data)

    threads = [threading.Thread(target=work) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    # Beside them, strangers who claim much and send nothing.
    idle = [connect(UnixAddress(running.path), timeout_s=10) for _ in range(AT_ONCE)]
    for sock in idle:
        sock.sendall(struct.pack(">I", frames.MAX_FRAME_BYTES) + b"{")
    for thread in threads:
        thread.join(100)
        assert not thread.is_alive()
    grown = running.peak_bytes() - before
    for sock in idle:
        sock.close()
    assert grown <= CAPACITY_BYTES + HEADERS_BYTES + SPARE_BYTES, f"{grown >> 20} MiB"
    with Caller(running.path) as engine:
        assert engine.hello() is None
        assert engine.health().attestation_ready
