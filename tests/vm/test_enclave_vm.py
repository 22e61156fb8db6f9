"""The enclave image in a virtual machine: real AF_VSOCK, the guest's own /dev/nsm, TLS to KMS that ends inside."""

from __future__ import annotations

import json
import os
import re
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from enclave.enclave_app import CA_FILE
from infra.eif import reader
from infra.eif.fetch import PackageCache
from infra.eif.profiles import VM
from infra.local_nsm import create_pki
from mrgc.attest.chain import aws_root, load_root
from mrgc.attest.verify import Policy, verify_enclave_document
from mrgc.errors import UntrustedChain
from mrgc.measurements import read_measurements
from mrgc.wire.enclave_protocol import AttestRequest, Use
from mrgc.wire.sealed import open_result, parse_result
from tests.enclave.json_caller import JsonCaller, plaintext_of, sealed_of
from tests.enclave.stack import Kms, seal_request
from tests.vm.machines import PACKAGES, Machine, write_variant
from tests.waiting import until

MEBIBYTE: Final = 1 << 20

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def pcr0(image: Path) -> bytes:
    """Return the published PCR0 of the image, as a tenant gets it."""
    return read_measurements(image / "pcr-values.json")[0]


def test_the_guests_document_proves_the_published_image(machine: Machine, image: Path, pki: Path) -> None:
    """A document from the guest's /dev/nsm has the PCRs of pcr-values.json, our nonce, and the test root's chain."""
    nonce = os.urandom(32)
    with machine.serving() as caller:
        document = caller.attest(AttestRequest(nonce, Use.IDENTITY))
    policy = Policy(pcrs=read_measurements(image / "pcr-values.json"), nonce=nonce, max_age_s=300)
    now = datetime.now(UTC)
    verify_enclave_document(document, root=load_root((pki / "root.pem").read_bytes()), at=now, policy=policy)
    with pytest.raises(UntrustedChain):
        verify_enclave_document(document, root=aws_root(), at=now, policy=policy)


def test_the_machine_boots_what_the_file_says(machine: Machine, image: Path) -> None:
    """The enclave serves from the image whose file was measured, started less than a minute before it was healthy."""
    assert reader.read(image / "mrgc-enclave.eif").pcrs == read_measurements(image / "pcr-values.json")
    with machine.serving() as caller:
        assert caller.health().attestation_ready


@pytest.mark.parametrize("size", [16, 64 << 10, MEBIBYTE, 8 * MEBIBYTE])
def test_a_job_is_opened_and_its_result_sealed(machine: Machine, kms: Kms, pcr0: bytes, size: int) -> None:
    """Bodies of any size cross the vsock both ways: KMS releases the data key to this image, the tenant opens."""
    key = kms.data_key(key_arn=kms.create_key(pcr0=pcr0))
    body = os.urandom(size)
    job = key.job(body)
    with machine.serving() as caller:
        opened = caller.open_one(job)
        assert bytes(opened.plaintext) == body
        (sealed,) = caller.seal([seal_request(opened, job, body[::-1], type="application/vnd.safetensors")])
    assert isinstance(sealed, memoryview)
    assert bytes(open_result(parse_result(bytes(sealed)), data_key=key.plaintext)) == body[::-1]


def test_many_jobs_in_one_frame(machine: Machine, kms: Kms, pcr0: bytes) -> None:
    """A frame with 64 jobs of 16 KiB, which is 1 MiB, comes back whole and in order."""
    key = kms.data_key(key_arn=kms.create_key(pcr0=pcr0))
    bodies = [os.urandom(16 << 10) for _ in range(64)]
    with machine.serving() as caller:
        outcomes = caller.open([key.job(body) for body in bodies])
    assert [bytes(outcome.plaintext) for outcome in outcomes] == bodies  # type: ignore[union-attr]


def test_the_json_protocol_is_served(machine: Machine, kms: Kms, pcr0: bytes) -> None:
    """Decrypt and encrypt go over the same port, and TLS to KMS ends in the guest."""
    arn = kms.create_key(pcr0=pcr0, json_protocol=True)
    sealed = kms.client("acme").encrypt(
        KeyId=arn, Plaintext=b"bare", EncryptionContext={"mrgc:tenant": "acme", "mrgc:use": "payload"}
    )["CiphertextBlob"]
    with JsonCaller(machine.path) as caller:
        assert caller.health()["status"] == "healthy"
        assert plaintext_of(caller.decrypt(sealed, arn)) == b"bare"
        assert sealed_of(caller.encrypt(b"answer", arn)).startswith(b"mrgc")


def test_peers_come_and_go(machine: Machine, kms: Kms, pcr0: bytes) -> None:
    """Connections that end between frames, inside one or without a word leave the enclave serving the next."""
    for turn in range(30):
        with machine.caller() as caller:
            if turn % 3 == 1:
                caller.sock.sendall(b"\0\0\1\0half")
            if turn % 3 == 2:
                assert caller.hello() is None
                caller.sock.shutdown(socket.SHUT_WR)
    key = kms.data_key(key_arn=kms.create_key(pcr0=pcr0))
    with machine.serving() as caller:
        assert caller.open_codes([key.job()]) == ["ok"]


def test_kms_refuses_another_image(machine: Machine, kms: Kms, pcr0: bytes) -> None:
    """A key whose policy demands another PCR0 opens nothing, beside one that does."""
    other = kms.data_key(key_arn=kms.create_key(pcr0=pcr0[:-1] + bytes([pcr0[-1] ^ 1])))
    good = kms.data_key(key_arn=kms.create_key(pcr0=pcr0))
    with machine.serving() as caller:
        assert caller.open_codes([other.job(), good.job()]) == ["key_access", "ok"]


def test_a_changed_byte_in_the_image_is_refused_by_kms(
    packages: PackageCache, pki: Path, kms: Kms, image: Path, tmp_path: Path
) -> None:
    """One byte of one comment in the image: it boots and attests, PCR0 and PCR2 are others, and KMS gives no key."""
    source = (CA_FILE.parent / "counters.py").read_bytes()
    changes = {
        f"{PACKAGES}/enclave/counters.py": source.replace(b"Called by", b"Called bY", 1),
        f"{PACKAGES}/enclave/kms-roots.pem": kms.ca.read_bytes(),
    }
    assert changes[f"{PACKAGES}/enclave/counters.py"] != source
    file = tmp_path / "changed.eif"
    write_variant(file, packages, command_line=VM.command_line, changes=changes)
    original, changed = reader.read(image / "mrgc-enclave.eif").pcrs, reader.read(file).pcrs
    assert [original[index] == changed[index] for index in (0, 1, 2)] == [False, True, False]
    key = kms.data_key(key_arn=kms.create_key(pcr0=original[0]))
    own = kms.data_key(key_arn=kms.create_key(pcr0=changed[0]))
    running = Machine(file, tmp_path, pki=pki, kms=kms)
    try:
        running.wait_ready()
        with running.serving() as caller:
            assert caller.open_codes([key.job(), own.job()]) == ["key_access", "ok"]
    finally:
        running.stop()


def test_the_application_can_change_nothing_in_the_enclave(packages: PackageCache, kms: Kms, tmp_path: Path) -> None:
    """It writes no file, loads no module, has no privilege and no network, and when it ends the machine is off."""
    create_pki(tmp_path / "nsm")
    probe = Path(__file__).with_name("inside_enclave.py").read_bytes()
    changes = {f"{PACKAGES}/enclave/enclave_app.py": probe}
    write_variant(tmp_path / "probe.eif", packages, command_line=VM.command_line, changes=changes)
    running = Machine(tmp_path / "probe.eif", tmp_path, pki=tmp_path / "nsm", kms=kms)
    try:
        until(lambda: running.process.poll() is not None, within_s=240, what="the machine to end")
        assert running.process.returncode == 1
        console = running.console.read_text(errors="replace")
        assert "init: the application ended with status 0" in console
        # The firmware leaves escape sequences in front of the first line.
        found = json.loads(re.findall(r"\{.*\}", console)[0])
        assert found == {
            "uids": [65534, 65534, 65534],
            "groups": [],
            "capabilities": "0" * 16,
            "no_new_privs": "1",
            "modules_disabled": "1",
            "written": [],
            "interfaces_up": [],
            "environment": {},
            "mounts": ["/", "/dev", "/proc"],
        }
    finally:
        running.process.kill()
        running.process.wait()
