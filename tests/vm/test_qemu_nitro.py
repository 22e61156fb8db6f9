"""QEMU's nitro-enclave machine: an image reader, a measurement and an NSM that nobody here wrote.

It reads our image file itself, boots it, and answers /dev/nsm with the PCRs that it measured. It signs nothing, which
the verifier must notice. The machine is in no Debian package: QEMU_NITRO names a QEMU that has it.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import cbor2
import pytest

from infra.apt import PrivateApt, configured_mirror
from infra.eif import reader
from infra.eif.build import Plan, build
from infra.eif.fetch import PackageCache
from infra.eif.profiles import VM
from infra.vm_tools import CACHE, Tools
from mrgc.attest.chain import aws_root
from mrgc.attest.verify import Policy, verify_enclave_document
from mrgc.errors import AttestationError
from mrgc.measurements import extend_zero, read_measurements
from tests.vm.machines import PACKAGES, write_variant
from tests.waiting import until

ROOT: Final = Path(__file__).parents[2]
BESIDE: Final = ROOT.parent / "shared" / "tools" / "qemu-nitro" / "qemu-system-x86_64-nitro"
ROLE: Final = "arn:aws:iam::123456789012:role/parent"
INSTANCE: Final = "i-0123456789abcdef0"
#: Without ACPI, as on AWS, devices stand on the command line, which Debian's kernel does not read; with it the emulated
#: machine has no timer to calibrate the processor's clock by.
COMMAND_LINE: Final = f"{VM.command_line} tsc_early_khz=2000000"

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def qemu() -> list[str]:
    """Return how to start that QEMU, or skip where there is none."""
    program = Path(os.environ.get("QEMU_NITRO", BESIDE))
    if not program.exists():
        pytest.skip("no QEMU with the nitro-enclave machine: QEMU_NITRO names one")
    libraries = CACHE / "nitro"
    if not libraries.exists() and (mirror := configured_mirror("bookworm")):
        apt = PrivateApt(CACHE / "apt-nitro", {"bookworm": mirror})
        apt.update()
        (CACHE / "debs").mkdir(exist_ok=True)
        for deb in apt.download(["libfdt1", "libcbor0.8"], to=CACHE / "debs"):
            subprocess.run(["dpkg-deb", "-x", str(deb), str(libraries)], check=True, timeout=60)
    command = [
        "env",
        f"LD_LIBRARY_PATH={libraries}/usr/lib/x86_64-linux-gnu:{libraries}/lib/x86_64-linux-gnu",
        str(program),
    ]
    done = subprocess.run([*command, "-M", "help"], capture_output=True, text=True, timeout=60, check=False)
    if "nitro-enclave" not in done.stdout:
        pytest.skip(f"{program} does not run here: {done.stderr.strip()[:200]}")
    return command


class Boot(NamedTuple):
    """A started machine: its process, where its console writes, and whether its heartbeat has come."""

    process: subprocess.Popen[bytes]
    console: Path
    beat: threading.Event


@contextmanager
def booted(
    qemu: list[str], image: Path, folder: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Path, threading.Event]]:
    """Boot an image file in the machine; gives its process, its console and whether its heartbeat has come."""
    beat = threading.Event()
    tools = Tools()
    console = folder / "console.log"
    with ExitStack() as cleanup:
        listener = cleanup.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(folder / "vsock_9000"))
        listener.listen()
        threading.Thread(target=echo, args=(listener, beat), daemon=True).start()
        vsock = f"guest-cid=16,socket={folder}/vhost.sock,uds-path={folder}/vsock"
        daemon = subprocess.Popen([*tools.command("vhost-device-vsock"), "--vm", vsock])
        cleanup.callback(end, daemon)
        until((folder / "vhost.sock").exists, within_s=20, what="the vsock daemon")
        machine = f"nitro-enclave,acpi=on,vsock=c,id=exp-enclave,parent-role={ROLE},parent-id={INSTANCE}"
        command = [*qemu, "-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-m", "512M", "-smp", "2"]
        command += ["-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-serial", f"file:{console}", "-M", machine]
        command += [word for path in tools.firmware for word in ("-L", str(path))]
        command += ["-chardev", f"socket,id=c,path={folder}/vhost.sock", "-kernel", str(image)]
        process = subprocess.Popen(command)
        cleanup.callback(end, process)
        yield Boot(process, console, beat)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that may have ended by itself."""
    process.kill()
    process.wait()


def echo(listener: socket.socket, beat: threading.Event) -> None:
    """Answer the heartbeat as the parent does."""
    connection, _ = listener.accept()
    with connection:
        data = connection.recv(1)
        connection.sendall(data)
        if data == b"\xb7":
            beat.set()


@pytest.fixture(scope="module")
def answers(
    qemu: list[str], packages: PackageCache, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[int, bytes]]:
    """Return what the machine's NSM says of an image, and what our reader measures of the same file."""
    folder = tmp_path_factory.mktemp("nitro")
    probe = Path(__file__).with_name("inside_nitro.py").read_bytes()
    changes = {f"{PACKAGES}/enclave/enclave_app.py": probe}
    write_variant(folder / "probe.eif", packages, command_line=COMMAND_LINE, changes=changes)
    with booted(qemu, folder / "probe.eif", folder) as (process, console, beat):
        until(lambda: process.poll() is not None, within_s=240, what="the machine to end")
        assert beat.is_set()
        found = re.findall(r"\{.*\}", console.read_text(errors="replace"))
    return json.loads(found[0]), reader.read(folder / "probe.eif").pcrs


def test_another_implementation_measures_the_same(answers: tuple[dict[str, Any], dict[int, bytes]]) -> None:
    """PCR0, PCR1 and PCR2 in QEMU's document are those that the builder writes and the reader reads."""
    said, measured = answers
    document = cbor2.loads(cbor2.loads(bytes.fromhex(said["document"]))[2])
    assert {index: document["pcrs"][index] for index in (0, 1, 2)} == measured
    assert bytes.fromhex(said["pcr0"]) == measured[0]
    assert document["pcrs"][3] == extend_zero(ROLE)
    assert document["pcrs"][4] == extend_zero(INSTANCE)
    assert [document[name] for name in ("public_key", "user_data", "nonce")] == [b"key", b"data", b"nonce"]


def test_its_registers_are_locked(answers: tuple[dict[str, Any], dict[int, bytes]]) -> None:
    """What the machine measured cannot be extended from inside; our NSM device of /dev/nsm speaks its language."""
    said, _ = answers
    assert said["extend"] == {"Error": "ReadOnlyIndex"}
    assert said["module"]["locked_pcrs"] == list(range(16))
    assert (said["module"]["digest"], said["module"]["max_pcrs"], said["random"]) == ("SHA384", 32, 300)


def test_its_unsigned_document_is_refused(answers: tuple[dict[str, Any], dict[int, bytes]]) -> None:
    """The right PCRs and nonce in a document that nobody signed convince no verifier."""
    said, measured = answers
    policy = Policy(pcrs=measured, nonce=b"nonce", max_age_s=None)
    with pytest.raises(AttestationError):
        verify_enclave_document(bytes.fromhex(said["document"]), root=aws_root(), at=datetime.now(UTC), policy=policy)


def test_the_products_image_boots_there_and_ends_without_a_document(
    qemu: list[str], packages: PackageCache, tmp_path: Path
) -> None:
    """The machine takes the image and gets its heartbeat; the application refuses an NSM that does not sign."""
    plan = Plan(profile=VM._replace(command_line=COMMAND_LINE))
    build(plan, packages, out=tmp_path / "out")
    assert read_measurements(tmp_path / "out" / "pcr-values.json")
    with booted(qemu, tmp_path / "out" / "mrgc-enclave.eif", tmp_path) as (process, console, beat):
        until(lambda: process.poll() is not None, within_s=240, what="the machine to end")
        assert beat.is_set()
        text = console.read_text(errors="replace")
    assert "init: the application ended with status 256" in text
    assert "NsmError" in text or "DocumentFormatError" in text


def test_a_damaged_image_is_not_booted(qemu: list[str], packages: PackageCache, tmp_path: Path) -> None:
    """One changed byte: the machine refuses the file by its CRC, as our reader does."""
    write_variant(tmp_path / "good.eif", packages, command_line=COMMAND_LINE, changes={})
    data = bytearray((tmp_path / "good.eif").read_bytes())
    data[-600] ^= 1
    (tmp_path / "bad.eif").write_bytes(data)
    with booted(qemu, tmp_path / "bad.eif", tmp_path) as (process, _, beat):
        assert process.wait(60) != 0
        assert not beat.is_set()
