"""Puts the two ramdisks together from the files that contents.toml names.

Ramdisk 1 boots: init and the kernel's modules, measured with the kernel in PCR1. Ramdisk 2 is the application, measured
in PCR2: Python with the part of its library that the enclave imports, the packages, and our own code. There is no
shell, no package manager and no compiler in it; tests/eif/test_image.py holds the result against a list of its own.
Called by `infra.eif.build`. May import: the standard library, infra.eif.
"""

from __future__ import annotations

import lzma
import stat
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from infra.eif.archives import MERGED_LINKS, deb_files, wheel_files
from infra.eif.tree import DIRECTORY, Entry, Tree, moved, regular, select

ROOT: Final = Path(__file__).resolve().parents[2]
LIST: Final = Path(__file__).with_name("contents.toml")
#: Where Debian's Python looks for packages.
PACKAGES: Final = "usr/lib/python3/dist-packages"
KMS_ROOTS: Final = f"{PACKAGES}/enclave/kms-roots.pem"
#: All that can be executed, beside init: the interpreter, and the loader that the kernel starts it with.
EXECUTABLE: Final = ("usr/bin/python3.11", "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
INIT: Final = "enclave/init.py"

_STDLIB: Final = "usr/lib/python3.11"
_EXTENSION: Final = "cpython-311-x86_64-linux-gnu.so"


def application(load: Callable[[str], bytes], *, kms_roots: bytes | None = None) -> Tree:
    """Return ramdisk 2.

    Args:
        load: gives a pinned package's bytes by its name.
        kms_roots: PEM of other roots that may vouch for KMS than the image's own; for a VM beside a KMS of ours.
    """
    listed = _listed()
    tree: Tree = dict(MERGED_LINKS)
    for name, patterns in listed["debian"].items():
        tree |= select(deb_files(load(name)), patterns)
    for path in EXECUTABLE:
        tree[path] = regular(tree[path].data, is_executable=True)
    library: Tree = {}
    for name in listed["stdlib"]["packages"]:
        library |= deb_files(load(name))
    tree |= select(library, [f"{_STDLIB}/{name}.py" for name in listed["stdlib"]["modules"]])
    extensions = [f"{_STDLIB}/lib-dynload/{name}.{_EXTENSION}" for name in listed["stdlib"]["extensions"]]
    tree |= select(library, extensions)
    for name, patterns in listed["wheels"].items():
        tree |= moved(select(wheel_files(load(name)), patterns), PACKAGES)
    tree |= moved(_own(listed["own"]["files"]), PACKAGES)
    if kms_roots is not None:
        tree[KMS_ROOTS] = regular(kms_roots)
    return tree


def boot(modules: Mapping[str, bytes]) -> Tree:
    """Return ramdisk 1.

    Args:
        modules: file name → kernel module, in the order of loading.
    """
    tree: Tree = {"dev": DIRECTORY, "proc": DIRECTORY, "init": regular((ROOT / INIT).read_bytes(), is_executable=True)}
    for name, data in modules.items():
        tree[f"modules/{name}"] = regular(data)
    tree["modules/order"] = regular("".join(f"{name}\n" for name in modules).encode())
    return tree


def debian_kernel(package: bytes, version: str) -> tuple[bytes, dict[str, bytes]]:
    """Return Debian's kernel, and its modules by file name in the order of loading.

    Args:
        package: Debian's linux-image package.
        version: what follows "linux-image-" in its name.
    """
    files = deb_files(package)
    modules = {
        f"{path.rpartition('/')[2]}.ko": lzma.decompress(files[f"usr/lib/modules/{version}/kernel/{path}.ko.xz"].data)
        for path in _listed()["kernel"]["modules"]
    }
    return files[f"boot/vmlinuz-{version}"].data, modules


def _listed() -> dict[str, Any]:
    return tomllib.loads(LIST.read_text(encoding="utf-8"))


def _own(patterns: list[str]) -> Tree:
    paths = {path for pattern in patterns for path in ROOT.glob(pattern)} - {ROOT / INIT}
    files = {path.relative_to(ROOT).as_posix(): Entry(stat.S_IFREG, path.read_bytes()) for path in paths}
    return select(files, [pattern for pattern in patterns if pattern != INIT])
