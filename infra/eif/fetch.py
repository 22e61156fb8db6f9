"""Fetches the pinned packages once into a cache, by the machine's own apt and pip, and checks every hash.

A file in the cache is named by its SHA-256 and checked again at each use. Called by `infra.eif.build` and
`infra.eif.lock`. May import: the standard library, mrgc.errors, infra.apt, infra.eif.pins.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

from infra.apt import PrivateApt, configured_mirror
from infra.eif.pins import Pin, Pins
from mrgc.errors import ConfigError

#: Suites that the image's Debian packages come from, and the suite whose mirror has them where the machine knows none.
SUITES: Final = {"bookworm": "bookworm", "bookworm-security": "bookworm-security", "bookworm-backports": "bookworm"}
#: Where packages stay between builds unless the caller says otherwise.
CACHE: Final = Path(__file__).resolve().parents[2] / ".cache" / "eif"
_PIP_S: Final = 1_800.0
#: The image's Python and C library: CPython 3.11 on glibc 2.36.
_PLATFORMS: Final = ("manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
_SHOWN_CHARS: Final = 500


class PackageCache:
    """The pinned packages on this machine.

    Args:
        folder: kept between builds; may be deleted at any time.
        mirrors: suite → URI, for suites that this machine's apt does not have or should not be asked for.
    """

    def __init__(self, folder: Path, *, mirrors: Mapping[str, str]) -> None:
        self._folder = folder.resolve()
        self._mirrors = mirrors

    def load(self, pin: Pin) -> bytes:
        """Return the bytes of a fetched package.

        Raises:
            ConfigError: it was not fetched, or the file was changed since.
        """
        try:
            data = self._file(pin).read_bytes()
        except OSError as error:
            raise ConfigError(f"{pin.name} {pin.version} was not fetched: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != pin.sha256:
            self._file(pin).unlink()
            raise ConfigError(f"{pin.name} {pin.version} in {self._folder} was changed; it is removed, build again")
        return data

    def ensure(self, pins: Pins) -> None:
        """Fetch those packages that the cache does not have yet.

        Raises:
            ConfigError: a package cannot be had, or only with another content.
        """
        debian, wheels = (
            [pin for pin in group.values() if not self._file(pin).exists()] for group in (pins.debian, pins.wheels)
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=self._folder) as name:
            if debian:
                self._keep(debian, self._fetch_debian(debian, Path(name)))
            if wheels:
                requirements = [f"{pin.name}=={pin.version} --hash=sha256:{pin.sha256}" for pin in wheels]
                self._keep(wheels, download_wheels(requirements, to=Path(name)))

    def apt(self) -> PrivateApt:
        """Return an apt that knows the image's suites, with fresh lists.

        Raises:
            ConfigError: there is no mirror for a suite, or it cannot be reached.
        """
        apt = PrivateApt(self._folder / "apt", {suite: self._mirror(suite) for suite in SUITES})
        apt.update()
        return apt

    def _file(self, pin: Pin) -> Path:
        return self._folder / pin.sha256

    def _keep(self, wanted: Collection[Pin], files: Iterable[Path]) -> None:
        found = {hashlib.sha256(file.read_bytes()).hexdigest(): file for file in files}
        for pin in wanted:
            if pin.sha256 not in found:
                raise ConfigError(f"{pin.name} {pin.version}: no fetched file has the pinned SHA-256 {pin.sha256}")
            found[pin.sha256].replace(self._file(pin))

    def _fetch_debian(self, pins: list[Pin], folder: Path) -> list[Path]:
        try:
            return self.apt().download([f"{pin.name}={pin.version}" for pin in pins], to=folder)
        except ConfigError as error:
            raise ConfigError(
                f"{error}; what a mirror has dropped is in an archive of snapshots (--mirror), "
                "or the image moves on to the current version (python -m infra.eif lock)"
            ) from error

    def _mirror(self, suite: str) -> str:
        mirror = self._mirrors.get(suite) or configured_mirror(suite) or self._mirrors.get(SUITES[suite])
        mirror = mirror or configured_mirror(SUITES[suite])
        if mirror is None:
            raise ConfigError(f"this machine's apt has no {suite}: name a mirror, --mirror {suite}=URI")
        return mirror


def download_wheels(requirements: Iterable[str], *, to: Path) -> list[Path]:
    """Download wheels for the image's Python, without their dependencies.

    Args:
        requirements: pip's own lines; if one has a hash, all must.
        to: an empty folder.

    Raises:
        ConfigError: pip cannot have one, or its hash differs.
    """
    listed = to / "requirements.txt"
    listed.write_text("".join(f"{requirement}\n" for requirement in requirements))
    wanted = [f"--platform={platform}" for platform in _PLATFORMS]
    wanted += ["--implementation=cp", "--python-version=3.11", "--abi=cp311", "--abi=abi3", "--abi=none"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *wanted]
    command += ["--dest", str(to), "--requirement", str(listed)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PIP_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError("pip download took too long") from error
    if done.returncode != 0:
        raise ConfigError(f"pip download: {done.stderr.strip()[-_SHOWN_CHARS:]}")
    return sorted(to.glob("*.whl"))
