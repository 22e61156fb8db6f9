from __future__ import annotations

import hashlib
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from enclave import attestation, enclave_app
from enclave.kms_regions import PROXY_PORTS, endpoint, proxy_port
from enclave.nsm import NsmError
from infra.local_nsm import LocalNsm
from mrgc.errors import InternalError, KeyAccessError
from mrgc.wire.addresses import UnixAddress, listen
from tests.enclave.stack import PCRS, REPOSITORY, Caller, Kms

ARN = "arn:aws:kms:{}:123456789012:key/1234"

#: An enclave as `infra.local_enclave` starts it, hardened as in production, that reports on itself.
PROGRAM = """
import ctypes, json, resource, signal, socket, sys
from pathlib import Path
from enclave import attestation, enclave_app
from enclave.hardening import harden
from infra.local_nsm import LocalNsm
from mrgc.wire.addresses import UnixAddress, listen
harden()
enclave = enclave_app.build(LocalNsm(Path(sys.argv[1]), {0: b"\\x01" * 48}), lambda *_: socket.socket(), sys.argv[2])
signal.signal(signal.SIGTERM, lambda *_: enclave.stop())
listener = listen(UnixAddress(Path(sys.argv[3])), backlog=4)
PR_GET_DUMPABLE = 3
dumpable = ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)
print(json.dumps({"core": resource.getrlimit(resource.RLIMIT_CORE), "dumpable": dumpable}), flush=True)
enclave.serve(listener)
print("stopped", flush=True)
"""


def test_a_hardened_enclave_dumps_no_core_and_ends_on_sigterm(tmp_path: Path, pki: Path, kms: Kms) -> None:
    """Statement 8: the process has no core limit to raise, is not dumpable, serves, and stops cleanly."""
    path = tmp_path / "e.sock"
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(pki), str(kms.ca), str(path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline()) == {"core": [0, 0], "dumpable": 0}
            with Caller(path) as peer:
                assert peer.hello() is None
                process.send_signal(signal.SIGTERM)
                assert process.stdout.readline() == "stopped\n"
                assert process.wait(20) == 0
        finally:
            process.kill()


def test_production_wiring_starts_nowhere_but_in_an_enclave() -> None:
    """Without an NSM device main ends with an error before it listens; nothing stands in for the device."""
    if Path("/dev/nsm").exists():
        pytest.skip("this is an enclave")
    command = [sys.executable, "-m", "enclave.enclave_app"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    assert "NsmError" in ended.stderr


def test_without_a_first_document_there_is_no_enclave(pki: Path, kms: Kms) -> None:
    """An NSM that signs nothing leaves no clock, so nothing is built."""

    class Mute(LocalNsm):
        def attest(self, **_: object) -> bytes:
            raise NsmError("nsm request failed")

    with pytest.raises(NsmError):
        enclave_app.build(Mute(pki, PCRS), kms.dial, str(kms.ca))


@pytest.mark.parametrize("thread", ["attestation", "house"])
def test_a_thread_that_dies_ends_the_enclave_instead_of_leaving_it_half_alive(
    tmp_path: Path, pki: Path, *, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, thread: str
) -> None:
    """A defect where nobody waits for an answer stops serving with an error, and its text stays inside."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("canary")

    enclave = enclave_app.build(LocalNsm(pki, PCRS), lambda *_: socket.socket(), str(enclave_app.CA_FILE))
    monkeypatch.setattr(attestation, "RENEWAL_S", 0.01)
    monkeypatch.setattr(enclave_app, "TICK_S", 0.01)
    owner, name = {"attestation": (enclave._attestation, "renew"), "house": (enclave._data_keys, "sweep")}[thread]
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(InternalError):
        enclave.serve(listen(UnixAddress(tmp_path / "e.sock"), backlog=1))
    assert caplog.messages == [f"thread {thread} died: ZeroDivisionError"]


def test_stop_before_serve_and_twice_is_harmless(tmp_path: Path, pki: Path, kms: Kms) -> None:
    """A signal that comes early or again ends serving all the same."""
    enclave = enclave_app.build(LocalNsm(pki, PCRS), kms.dial, str(kms.ca))
    enclave.stop()
    enclave.stop()
    enclave.serve(listen(UnixAddress(tmp_path / "e.sock"), backlog=1))
    enclave.stop()


def test_the_roots_of_the_image_are_amazons() -> None:
    """kms-roots.pem holds Amazon Trust Services' roots with the fingerprints written beside them, and loads."""
    text = enclave_app.CA_FILE.read_text()
    stated = re.findall(r"# SHA-256 ([0-9a-f]{64})", text)
    roots = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", text, re.DOTALL)
    assert [hashlib.sha256(ssl.PEM_cert_to_DER_cert(root)).hexdigest() for root in roots] == stated
    # https://www.amazontrust.com/repository/: Amazon Root CA 1.
    assert "8ecde6884f3d87b1125ba31ac3fcb13d7016de7f57cc904fe1cb97c6ae98196e" in stated
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=str(enclave_app.CA_FILE))
    assert context.cert_store_stats()["x509_ca"] == len(roots) == 5


def test_every_region_has_a_proxy_of_its_own_and_a_public_host() -> None:
    """Hosts are KMS's public names, ports differ, and what is not in the table is refused."""
    assert len(set(PROXY_PORTS.values())) == len(PROXY_PORTS)
    for region, port in PROXY_PORTS.items():
        partition = "aws-us-gov" if region.startswith("us-gov") else "aws"
        where = endpoint(ARN.format(region).replace("arn:aws:", f"arn:{partition}:"))
        assert where == (region, f"kms.{region}.amazonaws.com")
        assert proxy_port(where.host) == port
    with pytest.raises(KeyAccessError):
        endpoint("arn:aws:kms:nowhere-1:123456789012:key/1")
    with pytest.raises(KeyAccessError):
        proxy_port("kms.nowhere-1.amazonaws.com")


def test_importing_the_enclave_touches_nothing() -> None:
    """Import opens no device, socket or thread, and pulls in neither the worker's nor the stack's code."""
    program = (
        "import sys, threading, enclave.enclave_app;"
        "assert threading.active_count() == 1;"
        "found = {name.partition('.')[0] for name in sys.modules};"
        "print(sorted(found & {'infra', 'worker', 'tasks', 'redis', 'torch', 'celery', 'obstore', 'structlog'}))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == "[]\n"
