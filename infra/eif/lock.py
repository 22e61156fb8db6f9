"""Moves the image on: writes the lock files anew from what mirrors have now.

Debian packages take the newest version of the image's suites; wheels take the versions of constraints.txt, which are
those that the tests ran with. The image's PCR0 changes, so tenants must be told. Called by `infra.eif.__main__`. May
import: the standard library, infra.eif, infra.durable_file.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from infra.durable_file import replace_file
from infra.eif.fetch import PackageCache, download_wheels
from infra.eif.pins import DEBIAN_LOCK, KERNEL_PREFIX, WHEEL_LOCK, Pin, read_locks

#: Debian's package that depends on the newest kernel of its flavour; stable's own has no NSM driver (Linux 6.8).
KERNEL: Final = "linux-image-cloud-amd64"
KERNEL_SUITE: Final = "bookworm-backports"
CONSTRAINTS: Final = Path(__file__).resolve().parents[2] / "constraints.txt"

_DEBIAN_HEADER: Final = """\
# The Debian packages of the enclave image. The image changes when this file does, and with it PCR0:
# python -m infra.eif lock writes it anew from what the mirror has now.
"""
_WHEEL_HEADER: Final = """\
# What the enclave image holds beside Python: one wheel each, for CPython 3.11 on x86-64. pip's own form, one a line.
# python -m infra.eif lock writes it anew from the versions of constraints.txt.
"""


def renew(cache: PackageCache) -> list[Pin]:
    """Write both lock files anew.

    Returns:
        The packages that changed.

    Raises:
        ConfigError: a package cannot be had.
    """
    before = read_locks()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        debian = _newest_debian(cache, [*before.without_kernel().debian], folder)
        wheels = _constrained_wheels([*before.wheels], folder)
    entries = (f'\n[[package]]\nname = "{p.name}"\nversion = "{p.version}"\nsha256 = "{p.sha256}"\n' for p in debian)
    replace_file(DEBIAN_LOCK, (_DEBIAN_HEADER + "".join(entries)).encode(), mode=0o644)
    lines = (f"{pin.name}=={pin.version} --hash=sha256:{pin.sha256}\n" for pin in wheels)
    replace_file(WHEEL_LOCK, (_WHEEL_HEADER + "".join(lines)).encode(), mode=0o644)
    known = {*before.debian.values(), *before.wheels.values()}
    return [pin for pin in (*debian, *wheels) if pin not in known]


def _newest_debian(cache: PackageCache, names: list[str], folder: Path) -> list[Pin]:
    apt = cache.apt()
    planned = (each.partition("=")[0] for each in apt.closure([f"{KERNEL}/{KERNEL_SUITE}"]))
    kernel = next(name for name in planned if name.startswith(KERNEL_PREFIX) and name != KERNEL)
    # Debian's file names are NAME_VERSION_ARCHITECTURE.deb, with the version's colon escaped.
    files = {unquote(file.name).split("_")[0]: file for file in apt.download([*names, kernel], to=folder)}
    return [Pin(name, unquote(files[name].name).split("_")[1], _sha256(files[name])) for name in [*names, kernel]]


def _constrained_wheels(names: Iterable[str], folder: Path) -> list[Pin]:
    versions = dict(re.findall(r"^([\w.-]+)==(\S+)$", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE))
    pins = []
    for name in names:
        place = folder / name
        place.mkdir()
        (file,) = download_wheels([f"{name}=={versions[name]}"], to=place)
        pins.append(Pin(name, versions[name], _sha256(file)))
    return pins


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
