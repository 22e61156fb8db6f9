"""QEMU and the vsock daemon that enclave VMs need, from Debian unstable into a folder, with a C library of their own.

Only QEMU from 10.2 on lets a device of ours stand behind /dev/nsm (vhost-user-test-device), and Debian 12 has none.
Nothing is installed: the packages are unpacked, and the programs run through their own loader. They are tools of a
test, not parts of the image, so they are not pinned; apt verifies Debian's signature. `python -m infra.vm_tools`
fetches them, `Tools` finds them.

Called by `infra.vm`. May import: the standard library, mrgc.errors, infra.apt.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from infra.apt import PrivateApt, configured_mirror
from mrgc.errors import ConfigError, MrgcError

SUITE: Final = "sid"
#: Debian's unstable is on the same mirrors as its stable release.
_STABLE: Final = "bookworm"
PACKAGES: Final = ("qemu-system-x86", "vhost-device-vsock")
CACHE: Final = Path(__file__).resolve().parents[1] / ".cache" / "vm"

_LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"
_UNPACK_S: Final = 120.0


class Tools:
    """The unpacked programs.

    Args:
        folder: where `fetch` put them.

    Raises:
        ConfigError: they are not there.
    """

    def __init__(self, folder: Path = CACHE) -> None:
        self._root = folder.resolve() / "root"
        if not self._root.is_dir():
            raise ConfigError("QEMU for enclave VMs is not there: python -m infra.vm_tools")

    def command(self, program: str) -> list[str]:
        """Return how to start a program of usr/bin: through the loader and the libraries that came with it."""
        libraries = f"{self._root}/{_LIBRARIES}"
        # usr/lib first: the packages' own folder may be a link on another Debian, never here.
        return [f"{libraries}/ld-linux-x86-64.so.2", "--library-path", libraries, f"{self._root}/usr/bin/{program}"]

    @property
    def firmware(self) -> list[Path]:
        """Folders in which QEMU finds its firmware."""
        return [self._root / "usr/share" / name for name in ("qemu", "seabios")]


def fetch(folder: Path, *, mirror: str | None = None) -> None:
    """Fetch and unpack the programs; does nothing where they are.

    Raises:
        ConfigError: they cannot be had.
    """
    folder = folder.resolve()
    if (folder / "root").is_dir():
        return
    found = mirror or configured_mirror(_STABLE)
    if found is None:
        raise ConfigError("this machine's apt has no Debian mirror: name one, --mirror URI")
    folder.mkdir(parents=True, exist_ok=True)
    apt = PrivateApt(folder / "apt", {SUITE: found})
    apt.update()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        unpacked = Path(name) / "root"
        debs = Path(name) / "debs"
        debs.mkdir()
        for deb in apt.download(apt.closure(PACKAGES), to=debs):
            _unpack(deb, unpacked)
        unpacked.rename(folder / "root")
    shutil.rmtree(folder / "apt")


def _unpack(deb: Path, root: Path) -> None:
    try:
        subprocess.run(["dpkg-deb", "-x", str(deb), str(root)], check=True, capture_output=True, timeout=_UNPACK_S)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{deb.name} cannot be unpacked: {type(error).__name__}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, or 2 when the programs cannot be had."""
    parser = argparse.ArgumentParser(prog="python -m infra.vm_tools", description="fetch QEMU for enclave VMs")
    parser.add_argument("--to", type=Path, default=CACHE, metavar="DIR", help="(default: .cache/vm)")
    parser.add_argument("--mirror", metavar="URI", help="a Debian mirror (default: that of this machine's apt)")
    options = parser.parse_args(argv)
    try:
        fetch(options.to, mirror=options.mirror)
    except MrgcError as error:
        print(f"infra.vm_tools: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
