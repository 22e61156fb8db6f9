"""Which packages the image is made of: name, version and SHA-256 of each, from two lock files.

`infra/eif/debian.lock.toml` holds the Debian packages, `enclave/requirements.txt` the wheels, in pip's own form. The
hash is what counts: where the bytes come from, and who signed for them there, does not matter after that. Called by
`infra.eif.fetch`, `infra.eif.contents` and `infra.eif.build`. May import: the standard library, mrgc.errors.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Final, NamedTuple

from mrgc.errors import ConfigError

DEBIAN_LOCK: Final = Path(__file__).with_name("debian.lock.toml")
KERNEL_PREFIX: Final = "linux-image-"
WHEEL_LOCK: Final = Path(__file__).resolve().parents[2] / "enclave" / "requirements.txt"

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_REQUIREMENT: Final = re.compile(r"([A-Za-z0-9_.-]+)==([A-Za-z0-9_.+!-]+) --hash=sha256:([0-9a-f]{64})")


class Pin(NamedTuple):
    """One package, of which there is one file that will do."""

    name: str
    version: str
    sha256: str


class Pins(NamedTuple):
    """All packages of the image, by name."""

    debian: dict[str, Pin]
    wheels: dict[str, Pin]

    @property
    def kernel(self) -> Pin:
        """The package with Debian's kernel."""
        return next(pin for name, pin in self.debian.items() if name.startswith(KERNEL_PREFIX))

    def without_kernel(self) -> Pins:
        """Return the packages of ramdisk 2."""
        return self._replace(debian={name: pin for name, pin in self.debian.items() if pin != self.kernel})

    def get(self, name: str) -> Pin:
        """Return a package's pin.

        Raises:
            ConfigError: no lock file has it.
        """
        pin = self.debian.get(name) or self.wheels.get(name)
        if pin is None:
            raise ConfigError(f"{name} is in no lock file")
        return pin


def read_locks() -> Pins:
    """Return the packages of the two lock files.

    Raises:
        ConfigError: a lock file is not of its form, or has no kernel.
    """
    pins = Pins(read_debian(DEBIAN_LOCK), read_wheels(WHEEL_LOCK))
    if not any(name.startswith(KERNEL_PREFIX) for name in pins.debian):
        raise ConfigError(f"{DEBIAN_LOCK}: no {KERNEL_PREFIX}…")
    return pins


def read_debian(file: Path) -> dict[str, Pin]:
    """Return the pinned Debian packages by name.

    Raises:
        ConfigError: the lock file is not of its form.
    """
    try:
        entries = tomllib.loads(file.read_text(encoding="utf-8"))["package"]
        pins = [Pin(entry["name"], entry["version"], entry["sha256"]) for entry in entries]
    except (KeyError, TypeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: not a list of packages with name, version and sha256") from error
    return _by_name(pins, file)


def read_wheels(file: Path) -> dict[str, Pin]:
    """Return the pinned wheels by name.

    Raises:
        ConfigError: a line is not `name==version --hash=sha256:…`.
    """
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    matched = [_REQUIREMENT.fullmatch(line) for line in lines]
    if wrong := [line for line, match in zip(lines, matched, strict=True) if match is None]:
        raise ConfigError(f"{file}: not name==version --hash=sha256:…: {wrong[0]}")
    return _by_name([Pin(match[1], match[2], match[3]) for match in matched if match], file)


def _by_name(pins: list[Pin], file: Path) -> dict[str, Pin]:
    for pin in pins:
        if _SHA256.fullmatch(pin.sha256) is None:
            raise ConfigError(f"{file}: {pin.name}: sha256 is not 64 hex digits")
    if len({pin.name for pin in pins}) != len(pins):
        raise ConfigError(f"{file}: a package occurs twice")
    return {pin.name: pin for pin in pins}
