"""The command that writes manifests: what it finds by itself, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from infra import tiny_model
from tests.models.hostile import put
from worker.models import make_manifest, registry
from worker.models.folder import survey
from worker.models.manifest import CONFIG, MANIFEST, parse_manifest


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny model's folder without a manifest."""
    copy = Path(shutil.copytree(tiny_folder / tiny_model.NAME, tmp_path / tiny_model.NAME))
    (copy / MANIFEST).unlink()
    return copy


class Said(NamedTuple):
    """What the command did."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command, run in this process for a folder and with a licence."""

    def run(folder: Path, *arguments: str, licence: str = "CC0-1.0") -> Said:
        monkeypatch.setattr(sys, "argv", ["make_manifest", str(folder), "--licence", licence, *arguments])
        code = make_manifest.main()
        return Said(code, *capsys.readouterr())

    return run


def test_a_folder_is_served_with_what_the_command_finds_in_it(
    folder: Path, tiny_folder: Path, command: Command
) -> None:
    """Limits, type, files and hashes are those of the files; the model that it prints is the one that is served."""
    said = command(folder, "--version", "7")
    assert said.code == make_manifest.WRITTEN, said.err
    written = parse_manifest((folder / MANIFEST).read_bytes())
    assert written == parse_manifest((tiny_folder / tiny_model.NAME / MANIFEST).read_bytes())
    model = registry.load(folder.parent, device="cpu", dtype="fp32").find(said.out.strip())
    assert said.out == f"{tiny_model.NAME}@sha256:{model.digest}\n"


def test_labels_are_those_of_the_configuration(tmp_path: Path, command: Command) -> None:
    """A classifier's labels come in the order of their numbers, which is not that of their texts."""
    labels = tuple(f"label {number}" for number in reversed(range(11)))
    kind = tiny_model.Kind(architecture="BertForSequenceClassification", labels=labels)
    folder = tiny_model.write(tmp_path, kind=kind)
    id2label = {str(number): label for number, label in enumerate(labels)}
    fields = json.loads((folder / CONFIG).read_bytes()) | {"id2label": id2label}
    (folder / CONFIG).write_text(json.dumps(fields))
    assert command(folder, "--task", "classify", "--force").err == ""
    manifest = survey(folder).manifest
    assert (manifest.labels, manifest.dimensions, manifest.pooling) == (labels, 11, "cls")
    assert registry.load(tmp_path, device="cpu", dtype="fp32").find(tiny_model.NAME).dimensions == 11


def test_a_manifest_is_replaced_only_on_demand(folder: Path, command: Command) -> None:
    """Another manifest is another digest, which tenants may have pinned."""
    assert command(folder).code == make_manifest.WRITTEN
    before = (folder / MANIFEST).read_bytes()
    refused = command(folder, licence="MIT")
    assert refused.code == make_manifest.REFUSED
    assert "--force" in refused.err
    assert (folder / MANIFEST).read_bytes() == before
    assert command(folder, "--force", licence="MIT").code == make_manifest.WRITTEN
    assert (folder / MANIFEST).read_bytes() != before


@pytest.mark.parametrize(
    ("spoilt", "arguments", "complaint"),
    [
        (("model.pt", b""), (), "model.pt is not a data format"),
        (("extra.json", b'{"auto_map": {}}'), (), "names code to be loaded: auto_map"),
        ((CONFIG, b'{"hidden_size": 64}'), (), "--max-tokens has to say it"),
        ((CONFIG, b'{"max_position_embeddings": 64}'), (), "--dimensions has to say it"),
        ((CONFIG, b"{"), (), "config.json is not strict json"),
        ((CONFIG, b"{}"), ("--task", "classify"), "id2label"),
        (("model.safetensors", b""), (), "model.safetensors is not a safetensors file"),
        (("vocab.txt", b""), ("--task", "paint"), "task"),
        (("vocab.txt", b""), ("--pooling", "max"), "pooling"),
    ],
)
def test_a_folder_that_an_engine_would_refuse_gets_no_manifest(
    folder: Path,
    spoilt: tuple[str, bytes],
    arguments: tuple[str, ...],
    complaint: str,
    command: Command,
) -> None:
    """One line says what is wrong with which folder, and nothing is left behind."""
    (folder / spoilt[0]).write_bytes(spoilt[1])
    said = command(folder, *arguments)
    assert said.code == make_manifest.REFUSED
    assert said.err.startswith(f"make_manifest: model folder {tiny_model.NAME}: ")
    assert complaint in said.err
    assert not (folder / MANIFEST).exists()


def test_what_stood_there_is_restored_when_the_new_manifest_is_refused(folder: Path, command: Command) -> None:
    """--force never costs a model that was served."""
    assert command(folder).code == make_manifest.WRITTEN
    before = (folder / MANIFEST).read_bytes()
    put(folder, "extra.json", b'{"trust_remote_code": true}')
    (folder / MANIFEST).write_bytes(before)
    assert command(folder, "--force", licence="MIT").code == make_manifest.REFUSED
    assert (folder / MANIFEST).read_bytes() == before


def test_a_folder_that_is_not_there_is_said_in_one_line(tmp_path: Path, command: Command) -> None:
    """A slip of the keyboard is no traceback."""
    said = command(tmp_path / "absent")
    assert said.code == make_manifest.REFUSED
    assert said.err.count("\n") == 1


def test_the_help_says_what_is_found_and_what_has_to_be_said() -> None:
    """`--help` and a missing licence are answered without reading anything."""
    command = [sys.executable, "-m", "worker.models.make_manifest"]
    help_text = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=55, check=True).stdout
    assert all(
        option in help_text for option in ("FOLDER", "--licence", "--max-tokens", "--handler", "--force", "Exit")
    )
    assert subprocess.run([*command, "folder"], capture_output=True, timeout=55, check=False).returncode == 2
