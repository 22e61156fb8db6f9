"""An enclave image in a virtual machine: `python -m infra.vm --image FILE`, in the foreground until it ends.

Boots exactly the bytes that it measured: the file is copied once, and kernel, ramdisks and PCRs come from that copy.
The guest has a vsock and an NSM that signs under a test root, and nothing else: no network, no disk. On the outside it
looks like the one-machine enclave: a unix socket that leads to the guest's port 5000.

QEMU emulates the processor unless the host's has virtualisation. Called by `infra.local`. May import: the standard
library, infra, enclave.kms_regions, mrgc.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enclave.enclave_app import PORT
from enclave.kms_regions import PROXY_PORTS
from infra import vm_bridge
from infra.eif import reader
from infra.eif.layout import Span
from infra.eif.profiles import MEBIBYTE
from infra.eif.reader import EnclaveImage
from infra.local_nsm import LocalNsm
from infra.nsm_commands import NsmCommands
from infra.supervisor import end_with_parent
from infra.vhost_nsm import QUEUE_ENTRIES, VIRTIO_ID, VhostNsm
from infra.vm_tools import Tools
from mrgc.errors import ConfigError, EnclaveUnreachable, MrgcError
from mrgc.wire.addresses import UnixAddress, parse_address

GUEST_CID: Final = 16
HEARTBEAT_PORT: Final = 9_000
#: From QEMU's start to the heartbeat; 5 to 15 s under emulation, minutes where two cores do much else too.
BOOT_S: Final = 300.0
_DAEMON_S: Final = 10.0
_PAUSE_S: Final = 0.05
_CONSOLE_BYTES: Final = 4_000


@dataclass(frozen=True, slots=True)
class Machine:
    """What one virtual machine needs."""

    image: Path
    #: For sockets and the console's log; emptied at each start.
    folder: Path
    #: Made by infra.local_nsm.create_pki.
    nsm: Path
    #: Where the guest's port 5000 appears.
    listen: Path
    region: str
    #: Loopback port of the KMS.
    kms_port: int

    @property
    def console(self) -> Path:
        """What the guest's kernel and programs write."""
        return self.folder / "console.log"


async def run(machine: Machine) -> None:
    """Boot the image and serve it until it ends or this task is cancelled.

    Raises:
        ConfigError: the image, QEMU or the daemon cannot be used.
        EnclaveUnreachable: the guest did not boot, or ended; says what it printed last.
    """
    shutil.rmtree(machine.folder, ignore_errors=True)
    machine.folder.mkdir(parents=True)
    tools = Tools()
    daemon_socket, uds = machine.folder / "vhost.sock", machine.folder / "vsock"
    async with contextlib.AsyncExitStack() as cleanup:
        copy = cleanup.enter_context(_copied(machine.image))
        image = reader.read(copy)
        await _start_daemon(tools, daemon_socket, uds, cleanup)
        booted = await vm_bridge.heartbeat(Path(f"{uds}_{HEARTBEAT_PORT}"))
        await vm_bridge.out_of_guest(Path(f"{uds}_{PROXY_PORTS[machine.region]}"), port=machine.kms_port)
        _serve_nsm(machine.folder / "nsm.sock", NsmCommands(LocalNsm(machine.nsm, image.pcrs)))
        qemu = await _start_qemu(tools, machine, image, cleanup)
        ended = asyncio.create_task(qemu.wait())
        alive = asyncio.create_task(booted.wait())
        await asyncio.wait({ended, alive}, timeout=BOOT_S, return_when=asyncio.FIRST_COMPLETED)
        if not alive.done():
            raise EnclaveUnreachable(
                f"the enclave did not boot; its console ends with:\n{_last_words(machine.console)}"
            )
        await vm_bridge.into_guest(machine.listen, daemon=uds, port=PORT)
        await ended
        raise EnclaveUnreachable(f"the enclave ended; its console ends:\n{_last_words(machine.console)}")


@contextlib.contextmanager
def _copied(file: Path) -> Iterator[Path]:
    """Copy the image to memory of our own, and give its path: nobody can change it between measuring and booting."""
    with os.fdopen(os.memfd_create("image"), "w+b") as copy:
        try:
            with file.open("rb") as source:
                shutil.copyfileobj(source, copy)
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror}") from error
        copy.flush()
        yield Path(f"/proc/self/fd/{copy.fileno()}")


def _part(image: EnclaveImage, spans: Sequence[Span]) -> int:
    """Return a descriptor of a memory file with these sections' data, one after the other."""
    descriptor = os.memfd_create("part")
    with image.path.open("rb") as source, os.fdopen(os.dup(descriptor), "wb") as part:
        for span in spans:
            source.seek(span.offset)
            part.write(source.read(span.size))
    return descriptor


async def _start_daemon(tools: Tools, sock: Path, uds: Path, cleanup: contextlib.AsyncExitStack) -> None:
    options = f"guest-cid={GUEST_CID},socket={sock},uds-path={uds}"
    process = await asyncio.create_subprocess_exec(
        *tools.command("vhost-device-vsock"), "--vm", options, preexec_fn=end_with_parent
    )
    cleanup.push_async_callback(_end, process)
    async with asyncio.timeout(_DAEMON_S):
        while not sock.exists():  # noqa: ASYNC240  one stat(2) of a local file
            if process.returncode is not None:
                raise ConfigError(f"vhost-device-vsock ended with status {process.returncode}")
            await asyncio.sleep(_PAUSE_S)


async def _start_qemu(
    tools: Tools, machine: Machine, image: EnclaveImage, cleanup: contextlib.AsyncExitStack
) -> asyncio.subprocess.Process:
    kernel, initrd = _part(image, [image.kernel]), _part(image, image.ramdisks)
    command = [*tools.command("qemu-system-x86_64"), *_qemu_arguments(tools, machine, image)]
    command += ["-kernel", f"/proc/self/fd/{kernel}", "-initrd", f"/proc/self/fd/{initrd}"]
    command += ["-append", image.command_line]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, pass_fds=(kernel, initrd), preexec_fn=end_with_parent
    )
    for descriptor in (kernel, initrd):
        os.close(descriptor)
    cleanup.push_async_callback(_end, process)
    return process


def _qemu_arguments(tools: Tools, machine: Machine, image: EnclaveImage) -> list[str]:
    memory = f"{image.header.default_memory_bytes // MEBIBYTE}M"
    # Under software virtualisation (no vmx, no svm) /dev/kvm runs only guests that know it: ours do not.
    virtualises = any(flag in Path("/proc/cpuinfo").read_text(encoding="utf-8").split() for flag in ("vmx", "svm"))
    processor = (
        ["-accel", "kvm", "-cpu", "host"] if virtualises else ["-accel", "tcg,thread=multi", "-cpu", "max,la57=off"]
    )
    device = f"vhost-user-test-device-pci,virtio-id={VIRTIO_ID},num_vqs=1,vq_size={QUEUE_ENTRIES},chardev=nsm"
    return [
        *("-nodefaults", "-no-user-config", "-nographic", "-no-reboot"),
        *("-M", "q35,memory-backend=memory", "-m", memory, "-smp", str(image.header.default_cpus), *processor),
        *("-object", f"memory-backend-memfd,id=memory,size={memory},share=on"),
        *(word for folder in tools.firmware for word in ("-L", str(folder))),
        *("-serial", f"file:{machine.console}"),
        *(
            "-chardev",
            f"socket,id=vsock,path={machine.folder}/vhost.sock",
            "-device",
            "vhost-user-vsock-pci,chardev=vsock",
        ),
        *("-chardev", f"socket,id=nsm,path={machine.folder}/nsm.sock", "-device", device),
    ]


def _serve_nsm(path: Path, commands: NsmCommands) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)

    def serve() -> None:
        # One boot, one connection: a guest that restarts gets a machine of its own.
        with listener:
            connection, _ = listener.accept()
        VhostNsm(connection, commands).serve()

    threading.Thread(target=serve, name="nsm", daemon=True).start()


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def _last_words(console: Path) -> str:
    return console.read_bytes()[-_CONSOLE_BYTES:].decode(errors="replace") if console.exists() else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 after SIGTERM, 1 when the enclave ended by itself."""
    parser = argparse.ArgumentParser(prog="python -m infra.vm", description="an enclave image in a virtual machine")
    parser.add_argument("--image", required=True, type=Path, help="built with --vm")
    parser.add_argument("--dir", required=True, type=Path, help="for sockets and console.log; emptied first")
    parser.add_argument("--nsm", required=True, type=Path, help="directory made by infra.local_nsm.create_pki")
    parser.add_argument("--listen", required=True, help="unix:PATH that leads to the enclave's port 5000")
    parser.add_argument("--region", required=True, choices=sorted(PROXY_PORTS), help="of the KMS")
    parser.add_argument("--kms-port", required=True, type=int, help="loopback port of the KMS")
    options = parser.parse_args(argv)
    try:
        return asyncio.run(_until_stopped(options))
    except MrgcError as error:
        print(f"infra.vm: {error}", file=sys.stderr)
        return 1


async def _until_stopped(options: argparse.Namespace) -> int:
    listen = parse_address(options.listen)
    if not isinstance(listen, UnixAddress):
        raise ConfigError("--listen takes unix:PATH: this is the parent's side")
    machine = Machine(
        options.image, options.dir.resolve(), options.nsm, listen.path, region=options.region, kms_port=options.kms_port
    )
    task = asyncio.create_task(run(machine))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return 0


if __name__ == "__main__":
    sys.exit(main())
