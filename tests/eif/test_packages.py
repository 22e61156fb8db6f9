"""Pinned packages: how archives are read, what a changed one does, and that the locks fit the rest."""

from __future__ import annotations

import hashlib
import io
import lzma
import re
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.apt import configured_mirror
from infra.eif import cpio, rootfs, tree
from infra.eif.archives import deb_files, wheel_files
from infra.eif.fetch import PackageCache
from infra.eif.pins import Pin, Pins, read_debian, read_locks, read_wheels
from infra.eif.tree import Entry, Tree
from mrgc.errors import ConfigError, FormatError
from tests.eif.image import unpack

ROOT: Final = Path(__file__).parents[2]


def ar_member(name: str, data: bytes) -> bytes:
    """Return one member of an ar archive (ar(5))."""
    head = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
    return head + data + b"\n" * (len(data) % 2)


def deb(members: list[tarfile.TarInfo], content: bytes = b"x") -> bytes:
    """Return a Debian package with these members, each file with the same content."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content))
    data = ar_member("data.tar.xz", lzma.compress(packed.getvalue()))
    return b"!<arch>\n" + ar_member("debian-binary", b"2.0\n") + ar_member("control.tar.xz", b"odd") + data


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    """Return a member of a tar archive."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, 0o755
    return info


def test_a_debian_package_gives_its_files_links_and_hard_links() -> None:
    """Files keep their execute bit, links their target, and the folders of old are merged into usr."""
    files = deb_files(
        deb(
            [
                member("./lib", tarfile.DIRTYPE),
                member("./lib/a.so.1"),
                member("./lib/a.so", tarfile.SYMTYPE, "a.so.1"),
                member("./usr/bin/b", tarfile.LNKTYPE, "./lib/a.so.1"),
            ]
        )
    )
    assert files.keys() == {"usr/lib/a.so.1", "usr/lib/a.so", "usr/bin/b"}
    assert files["usr/bin/b"] == files["usr/lib/a.so.1"] == Entry(stat.S_IFREG | 0o755, b"x")
    assert files["usr/lib/a.so"] == tree.link("a.so.1")


@pytest.mark.parametrize("data", [b"", b"PK\3\4", b"!<arch>\n" + ar_member("debian-binary", b"2.0\n")])
def test_what_is_no_debian_package_is_refused(data: bytes) -> None:
    """A file of another kind, or without data.tar.xz, names its defect."""
    with pytest.raises(FormatError, match="Debian package"):
        deb_files(data)


def test_a_wheel_gives_its_files() -> None:
    """Folders of the archive are no files."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a/", b"")
        archive.writestr("a/b.py", b"code")
    assert {name: entry.data for name, entry in wheel_files(packed.getvalue()).items()} == {"a/b.py": b"code"}


def test_a_pattern_that_matches_nothing_is_noticed() -> None:
    """A package that no longer has a file which the image needs stops the build, not the enclave."""
    with pytest.raises(ConfigError, match="usr/bin/gone"):
        tree.select({"usr/bin/b": tree.regular(b"")}, ["usr/bin/*", "usr/bin/gone"])


names = st.text(st.sampled_from("abc/.é"), min_size=1, max_size=12).filter(
    lambda name: all(part not in ("", ".", "..") for part in name.split("/"))
)
nodes = st.one_of(
    st.builds(tree.regular, st.binary(max_size=40), is_executable=st.booleans()),
    st.builds(tree.link, st.text(st.sampled_from("abc/"), min_size=1, max_size=8)),
)
trees = st.dictionaries(names, nodes, max_size=8).filter(
    lambda found: not any(other.startswith(f"{name}/") for name in found for other in found)
)


@given(trees)
def test_a_packed_tree_unpacks_to_itself(found: Tree) -> None:
    """Another reader finds every node with mode and content, parents before children, in one order for one tree."""
    archive = cpio.pack(found)
    members = unpack(archive)
    assert {name: (node.mode, node.data) for name, node in members.items() if name in found} == found
    assert all(stat.S_ISDIR(node.mode) for name, node in members.items() if name not in found)
    assert list(members) == sorted(members, key=str.encode)
    assert archive == cpio.pack(dict(reversed(found.items())))
    assert len(archive) % 512 == 0


@given(trees)
def test_the_tar_archive_holds_the_same_tree(found: Tree) -> None:
    """What nitro-cli's way gets is what the ramdisk has, without owners and times."""
    with tarfile.open(fileobj=io.BytesIO(rootfs.pack(found))) as archive:
        members = {info.name: info for info in archive}
        for name, entry in found.items():
            if entry.is_file:
                packed = archive.extractfile(members[name])
                assert packed is not None
                assert packed.read() == entry.data
            else:
                assert members[name].linkname.encode() == entry.data
    assert all((info.uid, info.gid, info.mtime) == (0, 0, 0) for info in members.values())


def test_a_changed_file_in_the_cache_is_removed_and_named(tmp_path: Path) -> None:
    """Whoever can write to the cache cannot put anything into the image."""
    good = Pin("good", "1", hashlib.sha256(b"good").hexdigest())
    cache = PackageCache(tmp_path, mirrors={})
    with pytest.raises(ConfigError, match="good 1 was not fetched"):
        cache.load(good)
    (tmp_path / good.sha256).write_bytes(b"good")
    assert cache.load(good) == b"good"
    (tmp_path / good.sha256).write_bytes(b"evil")
    with pytest.raises(ConfigError, match=r"good 1 in .* was changed"):
        cache.load(good)
    assert not (tmp_path / good.sha256).exists()


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt-get here")
def test_a_mirror_that_does_not_answer_is_an_error_that_says_so(tmp_path: Path) -> None:
    """A first build without its packages ends with apt's own reason, and leaves nothing that looks fetched."""
    absent = dict.fromkeys(("bookworm", "bookworm-security"), "http://127.0.0.1:9/debian/")
    wanted = Pins({"libc6": Pin("libc6", "1", "0" * 64)}, {})
    with pytest.raises(ConfigError, match="apt-get update: E: Failed to fetch"):
        PackageCache(tmp_path, mirrors=absent).ensure(wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["apt"]


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt-get here")
def test_the_mirrors_of_a_machine_are_known_before_its_first_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An apt whose lists are empty, as in a fresh container, names the mirrors of its sources; no other has a suite."""
    uri = "http://mirror.invalid/debian-security/"
    (tmp_path / "sources.list").write_text(f"deb [arch=amd64] {uri} bookworm-security main\n")
    (tmp_path / "lists/partial").mkdir(parents=True)
    settings = {"Etc::sourcelist": "sources.list", "Etc::sourceparts": "none", "State::lists": "lists"}
    (tmp_path / "apt.conf").write_text(
        "".join(f'Dir::{name} "{tmp_path / file}";\n' for name, file in settings.items())
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    assert configured_mirror("bookworm-security") == uri
    assert configured_mirror("bookworm") is None
    with pytest.raises(ConfigError, match="no bookworm: name a mirror, --mirror bookworm=URI"):
        PackageCache(tmp_path / "cache", mirrors={}).apt()


def test_wheels_of_the_image_are_those_the_tests_run_with() -> None:
    """Each wheel has the version of constraints.txt, so that what is tested is what is measured."""
    tested = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    wheels = read_locks().wheels
    assert {name: pin.version for name, pin in wheels.items()} == {name: tested[name] for name in wheels}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "package = 1",
        '[[package]]\nname = "a"\nversion = "1"',
        '[[package]]\nname = "a"\nversion = "1"\nsha256 = "ABC"',
        2 * f'[[package]]\nname = "a"\nversion = "1"\nsha256 = "{"0" * 64}"\n',
    ],
)
def test_a_lock_that_is_not_one_is_refused(text: str, tmp_path: Path) -> None:
    """A lock file without hashes, or with two of one name, is an error that names the file."""
    file = tmp_path / "debian.lock.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"debian\.lock\.toml"):
        read_debian(file)


@pytest.mark.parametrize("line", ["boto3", "boto3>=1 --hash=sha256:" + "0" * 64, "boto3==1", "-e ."])
def test_a_wheel_without_its_hash_is_refused(line: str, tmp_path: Path) -> None:
    """Only exact versions with exactly one hash are accepted."""
    file = tmp_path / "requirements.txt"
    file.write_text(f"# comment\n{line}\n")
    with pytest.raises(ConfigError, match=r"requirements\.txt"):
        read_wheels(file)
