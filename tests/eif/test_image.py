"""The built image: which files are in it, that the same input gives the same bytes, and what must never be in it."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import pytest

from infra.eif import reader
from infra.eif.profiles import MEMORY_PER_IMAGE
from mrgc.measurements import read_measurements
from tests.eif.image import Node, lay_out, ramdisks, unpack

ROOT: Final = Path(__file__).parents[2]
LISTED: Final = Path(__file__).with_name("image_files.txt")
PACKAGES: Final = "usr/lib/python3/dist-packages"

#: Names that no file or folder of the image has: ways to run other programs, to install, to compile, and what stands
#: in for Nitro elsewhere.
NEVER: Final = frozenset(
    (
        *("sh", "bash", "dash", "zsh", "busybox", "env", "perl", "apt", "dpkg"),
        *("pip", "ensurepip", "distutils", "setuptools", "venv"),
        *("gcc", "cc", "cpp", "tcc", "as", "ld", "lib2to3"),
        *("pdb.py", "bdb.py", "code.py", "codeop.py", "cmd.py", "pty.py", "socketserver.py", "xmlrpc", "wsgiref"),
        *("test", "tests", "unittest", "idlelib", "infra", "fuzz", "bench", "worker", "tasks"),
        *("local_nsm.py", "local_kms.py"),
    )
)

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def members(built: Path) -> list[dict[str, Node]]:
    """Return the members of both ramdisks, read by code that is not the builder's."""
    return [unpack(ramdisk) for ramdisk in ramdisks(built / "mrgc-enclave.eif")]


def matches(path: str, pattern: str) -> bool:
    """Return whether a path is what a line of the list names; * does not cross folders."""
    parts, patterns = path.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def test_the_image_holds_what_the_list_names_and_nothing_else(members: list[dict[str, Node]]) -> None:
    """Every file and link is on the reviewer's list, and every line of the list is in the image."""
    patterns = [line for line in LISTED.read_text().splitlines() if line and not line.startswith("#")]
    exact, wild = {p for p in patterns if "*" not in p}, [p for p in patterns if "*" in p]
    paths = {path for ramdisk in members for path, node in ramdisk.items() if not stat.S_ISDIR(node.mode)}
    paths |= {"dev", "proc"}
    assert {path for path in paths - exact if not any(matches(path, pattern) for pattern in wild)} == set()
    assert exact - paths == set()
    assert {pattern for pattern in wild if not any(matches(path, pattern) for path in paths)} == set()


def test_nothing_in_the_image_runs_other_programs_or_installs_any(members: list[dict[str, Node]]) -> None:
    """There is no shell, no package manager, no compiler, no debugger, no simulator and no test in it."""
    names = {part for ramdisk in members for path in ramdisk for part in path.split("/")}
    assert names & NEVER == set()
    executable = {path for ramdisk in members for path, node in ramdisk.items() if node.is_file and node.mode & 0o111}
    assert executable == {"init", "usr/bin/python3.11", "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"}


def test_no_root_but_amazons_is_in_the_image(members: list[dict[str, Node]]) -> None:
    """The roots that may vouch for KMS are those of the source tree, and no file names the software NSM's."""
    application = members[1]
    roots = [path for path, node in application.items() if b"-----BEGIN CERTIFICATE-----\nMII" in node.data]
    assert roots == [f"{PACKAGES}/enclave/kms-roots.pem"]
    assert application[roots[0]].data == (ROOT / "enclave" / "kms-roots.pem").read_bytes()
    assert [path for path, node in application.items() if b"local.nitro-enclaves" in node.data] == []


def test_nobody_may_write_in_the_image_and_nothing_has_a_date(members: list[dict[str, Node]]) -> None:
    """Every node belongs to root, has no time, no special bits, and is writable by nobody but root's folders."""
    for ramdisk in members:
        for node in ramdisk.values():
            assert (node.owner, node.modified_s) == ((0, 0), 0)
            if not stat.S_ISLNK(node.mode):
                assert not node.mode & (0o022 | stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX)
            if node.is_file:
                assert not node.mode & 0o200


def test_the_application_ramdisk_is_all_of_the_enclaves_code(members: list[dict[str, Node]]) -> None:
    """Every module of enclave/ and of what it imports from mrgc/ is there byte for byte, but init, which boots."""
    boot, application = members
    assert boot["init"].data == (ROOT / "enclave" / "init.py").read_bytes()
    own = [path for folder in ("enclave", "mrgc/wire", "mrgc/attest") for path in (ROOT / folder).glob("*.py")]
    for path in {*own, ROOT / "mrgc" / "errors.py"} - {ROOT / "enclave" / "init.py"}:
        assert application[f"{PACKAGES}/{path.relative_to(ROOT).as_posix()}"].data == path.read_bytes()


def test_the_image_is_small_and_says_how_much_memory_it_needs(built: Path) -> None:
    """At most 80 MB; the memory it asks for is at least four times its size, below which nitro-cli refuses."""
    image = json.loads((built / "build-output.json").read_text())["Image"]
    size = (built / "mrgc-enclave.eif").stat().st_size
    assert image["Bytes"] == size <= 80_000_000
    assert image["MemoryMiB"] << 20 >= MEMORY_PER_IMAGE * size
    assert reader.read(built / "mrgc-enclave.eif").header.default_memory_bytes == image["MemoryMiB"] << 20


def test_the_three_files_agree(built: Path) -> None:
    """The PCRs that a tenant's key policy is written from are those that a reader of the image measures."""
    measured = reader.read(built / "mrgc-enclave.eif").pcrs
    assert read_measurements(built / "pcr-values.json") == measured
    assert read_measurements(built / "build-output.json") == measured


def test_a_build_elsewhere_at_another_time_gives_the_same_bytes(built: Path, tmp_path: Path) -> None:
    """A copy of the source tree with other dates, in another folder, zone, locale and umask, builds the same files."""
    copy = tmp_path / "elsewhere" / "copy of the tree"
    for name in ("enclave", "infra", "mrgc"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in copy.rglob("*"):
        os.utime(path, (981_173_106, 981_173_106))
        path.chmod(0o700)
    shutil.copy(ROOT / "build.sh", copy)
    command = ["bash", "build.sh", "--out", "out", "--cache", str(ROOT / ".cache" / "eif")]
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "PYTHONHASHSEED": "7"}
    environment |= {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "HOME": str(tmp_path)}
    done = subprocess.run(
        command, cwd=copy, env=environment, umask=0o077, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in ("mrgc-enclave.eif", "pcr-values.json", "build-output.json"):
        assert (copy / "out" / name).read_bytes() == (built / name).read_bytes(), name


def test_every_module_of_the_kernel_comes_after_those_it_needs(members: list[dict[str, Node]]) -> None:
    """Init loads the modules in the order of the list, and each one's dependencies stand before it."""
    boot = members[0]
    order = boot["modules/order"].data.decode().split()
    assert {f"modules/{name}" for name in order} == {path for path in boot if path.endswith(".ko")}
    loaded: set[str] = set()
    for name in order:
        needs = re.findall(rb"\0?depends=([^\0]*)\0", boot[f"modules/{name}"].data)[0].decode()
        assert set(needs.split(",")) - {""} <= loaded
        loaded.add(name.removesuffix(".ko").replace("-", "_"))


def test_init_imports_only_what_the_image_has(members: list[dict[str, Node]]) -> None:
    """The first process stands on the standard library alone, and on the part of it that is in the image."""
    tree = ast.parse((ROOT / "enclave" / "init.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    missing = {
        name
        for name in imported - set(sys.builtin_module_names)
        if not {f"usr/lib/python3.11/{name}.py", f"usr/lib/python3.11/{name}/__init__.py"} & members[1].keys()
    }
    assert missing == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the root folder (chroot)")
def test_the_images_own_python_runs_the_application(members: list[dict[str, Node]], tmp_path: Path) -> None:
    """Inside the image's files alone, all of the application imports, calls KMS and fails for want of a network."""
    lay_out(members[1], tmp_path / "root")
    program = Path(__file__).with_name("inside_image.py").read_text()
    done = subprocess.run(
        [shutil.which("chroot") or "", str(tmp_path / "root"), "/usr/bin/python3.11", "-IB", "-c", program],
        env={},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "no network\n"), done.stderr
    assert "UserWarning: shown" in done.stderr
