"""Builds the enclave image from pinned packages and this source tree: the same input, the same bytes, on any machine.

Leaves `mrgc-enclave.eif`, `pcr-values.json` (what a tenant's key policy is written from) and `build-output.json` (what
went in, file by file). Nothing of the build's place, time or machine is in any of them. Called by `infra.eif.__main__`,
`infra.vm` and tests. May import: the standard library, mrgc.errors, infra.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from infra.durable_file import replace_file
from infra.eif import contents, cpio, measurement, pins, reader, writer
from infra.eif.fetch import PackageCache
from infra.eif.pins import KERNEL_PREFIX, Pins
from infra.eif.profiles import MEBIBYTE, NITRO, Profile, memory_mib
from infra.eif.signature import Signer
from infra.eif.tree import Entry, Tree, walk
from mrgc.errors import ConfigError

IMAGE_FILE: Final = "mrgc-enclave.eif"
PCR_FILE: Final = "pcr-values.json"
OUTPUT_FILE: Final = "build-output.json"
#: Python, cryptography, cbor2 and botocore for KMS fit; what does not is a package that slipped in.
MAX_BYTES: Final = 80_000_000
CPUS: Final = 2
#: nitro-cli's reader demands the field; the time of the build would make every build another file.
_NO_TIME: Final = "1970-01-01T00:00:00+00:00"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to build."""

    profile: Profile = NITRO
    #: Another kernel than Debian's: AWS's bzImage, with its nsm.ko beside it unless that is built in.
    kernel: Path | None = None
    #: PEM of the roots that may vouch for KMS, instead of the image's own.
    kms_roots: Path | None = None
    signer: Signer | None = None


@dataclass(frozen=True, slots=True)
class _Kernel:
    """A kernel, the modules that init loads, and where both came from."""

    image: bytes
    modules: Mapping[str, bytes]
    origin: str


def build(plan: Plan, cache: PackageCache, *, out: Path) -> dict[str, Any]:
    """Build an image into a folder.

    Returns:
        What was written to build-output.json.

    Raises:
        ConfigError: a package cannot be had, or the image would be too large; nothing was written.
    """
    locked = pins.read_locks()
    if plan.kernel is not None:
        locked = locked.without_kernel()
    cache.ensure(locked)
    kernel = _own_kernel(plan.kernel) if plan.kernel else _debian_kernel(locked, cache)
    trees = (contents.boot(kernel.modules), _application(locked, cache, plan.kms_roots))
    image = _contents(plan, kernel, tuple(cpio.pack(tree) for tree in trees))
    data = writer.encode(image)
    if len(data) > MAX_BYTES:
        raise ConfigError(f"the image would have {len(data):,} bytes; {MAX_BYTES:,} are allowed")
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / IMAGE_FILE, data, mode=0o644)
    # Read back from the file: what is published is what a reader of these very bytes measures.
    pcrs = measurement.to_json(reader.read(out / IMAGE_FILE).pcrs)
    output = {
        "Image": {
            "File": IMAGE_FILE,
            "Sha256": hashlib.sha256(data).hexdigest(),
            "Bytes": len(data),
            "MemoryMiB": image.memory_bytes // MEBIBYTE,
            "Cpus": CPUS,
            "Profile": plan.profile.name,
            "CommandLine": image.command_line,
            "Kernel": kernel.origin,
        },
        "Measurements": pcrs,
        "Packages": [pin._asdict() for group in locked for pin in group.values()],
        "Ramdisks": [_listing(tree) for tree in trees],
    }
    _write_json(out / PCR_FILE, {"Measurements": pcrs})
    _write_json(out / OUTPUT_FILE, output)
    return output


def application(cache: PackageCache) -> Tree:
    """Return ramdisk 2 by itself, of a Nitro Enclave's image.

    Raises:
        ConfigError: a package cannot be had.
    """
    locked = pins.read_locks().without_kernel()
    cache.ensure(locked)
    return _application(locked, cache, None)


def _application(locked: Pins, cache: PackageCache, kms_roots: Path | None) -> Tree:
    try:
        roots = kms_roots.read_bytes() if kms_roots else None
    except OSError as error:
        raise ConfigError(f"{kms_roots}: {error.strerror}") from error
    return contents.application(lambda name: cache.load(locked.get(name)), kms_roots=roots)


def _contents(plan: Plan, kernel: _Kernel, ramdisks: tuple[bytes, ...]) -> writer.Contents:
    metadata = {
        "ImageName": "mrgc-enclave",
        "ImageVersion": plan.profile.name,
        "BuildMetadata": {
            "BuildTime": _NO_TIME,
            "BuildTool": "infra.eif",
            "BuildToolVersion": "1",
            "OperatingSystem": "Debian 12",
            "KernelVersion": kernel.origin,
        },
        "DockerInfo": {},
        "CustomMetadata": {},
    }
    image_bytes = len(kernel.image) + sum(map(len, ramdisks))
    return writer.Contents(
        kernel=kernel.image,
        command_line=plan.profile.command_line,
        ramdisks=ramdisks,
        metadata=metadata,
        memory_bytes=memory_mib(image_bytes) * MEBIBYTE,
        cpus=CPUS,
        signer=plan.signer,
    )


def _debian_kernel(locked: Pins, cache: PackageCache) -> _Kernel:
    pin = locked.kernel
    image, modules = contents.debian_kernel(cache.load(pin), pin.name.removeprefix(KERNEL_PREFIX))
    return _Kernel(image, modules, f"{pin.name} {pin.version}")


def _own_kernel(file: Path) -> _Kernel:
    nsm = file.with_name("nsm.ko")
    try:
        image = file.read_bytes()
        modules = {nsm.name: nsm.read_bytes()} if nsm.exists() else {}
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from error
    return _Kernel(image, modules, f"sha256:{hashlib.sha256(image).hexdigest()}")


def _listing(tree: Mapping[str, Entry]) -> list[dict[str, Any]]:
    return [
        {"Path": path, "Mode": f"{entry.mode:06o}", "Sha256": hashlib.sha256(entry.data).hexdigest()}
        for path, entry in walk(tree)
    ]


def _write_json(path: Path, value: object) -> None:
    replace_file(path, f"{json.dumps(value, indent=1)}\n".encode(), mode=0o644)
