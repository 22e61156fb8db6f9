"""Enclave images in virtual machines: `python -m infra.vm` as a process, and images that differ a little."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from infra.eif import contents, cpio, writer
from infra.eif.fetch import PackageCache
from infra.eif.pins import KERNEL_PREFIX, read_locks
from infra.eif.profiles import MEBIBYTE
from infra.eif.tree import Tree, regular
from tests.enclave.stack import REGION, REPOSITORY, TOKEN, Caller, Kms
from tests.waiting import until

#: From the start of QEMU to the first answer; a shared machine with an emulated processor may be slow.
BOOT_S: Final = 240.0
PACKAGES: Final = contents.PACKAGES


class Machine:
    """One running virtual machine with an enclave in it."""

    def __init__(self, image: Path, folder: Path, *, pki: Path, kms: Kms) -> None:
        self.path = folder / "e.sock"
        self.console = folder / "vm" / "console.log"
        self.log = folder / "vm.log"
        command = [sys.executable, "-m", "infra.vm", "--image", str(image), "--dir", str(folder / "vm")]
        command += ["--nsm", str(pki), "--listen", f"unix:{self.path}", "--region", REGION, "--kms-port", str(kms.port)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log)

    def wait_ready(self) -> None:
        """Wait until the application in the guest answers, and give it token and credentials."""
        until(self._answers, within_s=BOOT_S, what="the enclave in the virtual machine to answer")
        with self.caller() as caller:
            assert caller.hello(TOKEN, json_protocol=True) is None
            assert caller.credentials() is None

    def caller(self) -> Caller:
        """Connect without saying anything."""
        return Caller(self.path)

    @contextlib.contextmanager
    def serving(self) -> Iterator[Caller]:
        """Connect as an engine."""
        with self.caller() as caller:
            assert caller.hello(TOKEN) is None
            yield caller

    def stop(self) -> None:
        """End it as a supervisor would."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) in (0, 1)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        if not self.path.exists():
            return False
        try:
            with self.caller() as caller:
                return caller.health().attestation_ready
        except OSError:
            return False


def write_variant(file: Path, cache: PackageCache, *, command_line: str, changes: Mapping[str, bytes]) -> None:
    """Write an image that differs from the product's in its command line and in some files of the application.

    Args:
        file: where the image goes.
        cache: has the pinned packages.
        command_line: of the kernel.
        changes: path in ramdisk 2 → content.
    """
    locked = read_locks()
    kernel, modules = contents.debian_kernel(cache.load(locked.kernel), locked.kernel.name.removeprefix(KERNEL_PREFIX))
    application: Tree = contents.application(lambda name: cache.load(locked.get(name)))
    for path, data in changes.items():
        application[path] = regular(data)
    ramdisks = tuple(cpio.pack(tree) for tree in (contents.boot(modules), application))
    writer.write(file, writer.Contents(kernel, command_line, ramdisks, {}, memory_bytes=512 * MEBIBYTE, cpus=2))
