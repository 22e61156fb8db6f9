"""Model folders are exactly what their manifest says, or they are refused."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra import tiny_model
from mrgc.errors import ConfigError
from worker.models.folder import ModelFolder, survey
from worker.models.manifest import MANIFEST, Manifest, parse_manifest

Change = Callable[[Path], object]


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder to be spoilt."""
    return Path(shutil.copytree(tiny_folder / tiny_model.NAME, tmp_path / tiny_model.NAME))


def read_folder(folder: Path) -> ModelFolder:
    """Survey a folder and compare every hash, as the engine does before it serves it."""
    found = survey(folder)
    found.verify()
    return found


def edit(folder: Path, **changes: Any) -> None:
    """Rewrite the manifest with other values; None removes a key."""
    fields = json.loads((folder / MANIFEST).read_bytes()) | changes
    (folder / MANIFEST).write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))


def flip_byte(path: Path) -> None:
    """Change one byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def add_pickle(folder: Path, name: str) -> None:
    """Add a pickle under `name` and list it, hash and all."""
    content = pickle.dumps({"weights": [1.0]})
    add_listed(folder, name, content)


def add_archive(folder: Path, name: str) -> None:
    """Add a zip archive, as torch.save and torch.jit.save write them, under `name` and list it."""
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02.")
    add_listed(folder, name, path.read_bytes())


def add_listed(folder: Path, name: str, content: bytes) -> None:
    """Write a file and list it with its true hash, so that only its kind can be wrong."""
    manifest = parse_manifest((folder / MANIFEST).read_bytes())
    (folder / name).write_bytes(content)
    files = dict(manifest.files) | {name: hashlib.sha256(content).hexdigest()}
    edit(folder, files=files)


def as_classifier(folder: Path, **changes: Any) -> None:
    """Turn the manifest into one of a model that classifies, but for some changes."""
    fields: dict[str, Any] = {"task": "classify", "pooling": "cls", "normalize": False, "dimensions": 2}
    edit(folder, **(fields | {"labels": ["joy", "anger"]} | changes))


def test_the_tiny_folder_is_read_with_all_its_files(folder: Path) -> None:
    """A sound folder gives its manifest, its digest and the bytes that were hashed."""
    found = read_folder(folder)
    assert found.manifest.name == tiny_model.NAME
    assert found.digest == hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    assert {name: found.read(name) for name in found.sizes} == {
        name: (folder / name).read_bytes() for name in found.manifest.files
    }


def test_the_digest_changes_with_any_byte_of_the_manifest(folder: Path) -> None:
    """The digest in result headers fixes the manifest to the byte, white space included."""
    before = read_folder(folder).digest
    (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes() + b"\n")
    assert read_folder(folder).digest != before


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda f: flip_byte(f / "model.safetensors"), "hash"),
        (lambda f: flip_byte(f / "tokenizer.json"), "hash"),
        (lambda f: (f / "config.json").unlink(), "files"),
        (lambda f: (f / "notes.txt").write_text("unlisted"), "files"),
        (lambda f: (f / "weights.pt").write_bytes(b""), "data format"),
        (lambda f: (f / "pytorch_model.bin").write_bytes(b""), "data format"),
        (lambda f: add_pickle(f, "extra.txt"), "pickle"),
        (lambda f: add_pickle(f, "model.safetensors"), "pickle"),
        (lambda f: add_pickle(f, "weights.pkl"), "data format"),
        (lambda f: add_archive(f, "extra.json"), "archive"),
        (lambda f: add_archive(f, "scripted.pt"), "data format"),
        (lambda f: (f / MANIFEST).write_text("{}"), "keys"),
        (lambda f: (f / MANIFEST).write_text("[" * 100), "strict json"),
        (lambda f: (f / MANIFEST).write_text('{"name": 1, "name": 2}'), "strict json"),
        (lambda f: (f / MANIFEST).write_bytes(b" " * 70_000), "size"),
        (lambda f: (f / MANIFEST).unlink(), "cannot be read"),
        (lambda f: edit(f, name="other"), "name"),
        (lambda f: edit(f, name="../tiny-bert"), "name"),
        (lambda f: edit(f, task="paint"), "task"),
        (lambda f: edit(f, task="generate"), "dimensions"),
        (lambda f: edit(f, task="generate", dimensions=0), "pooling"),
        (lambda f: edit(f, handler=""), "handler"),
        (lambda f: edit(f, handler="os:system"), "handler"),
        (lambda f: edit(f, handler=["a"]), "handler"),
        (lambda f: edit(f, handler="own", task="../x"), "task"),
        (lambda f: edit(f, handler="own", dimensions=-1), "dimensions"),
        (lambda f: edit(f, pooling="max"), "pooling"),
        (lambda f: edit(f, pooling="none"), "pooling"),
        (lambda f: edit(f, labels=["joy"]), "labels"),
        (lambda f: edit(f, labels="joy"), "labels"),
        (lambda f: edit(f, labels=[["joy"]]), "labels"),
        (lambda f: as_classifier(f, labels=["joy"]), "labels"),
        (lambda f: as_classifier(f, labels=["joy", "joy"]), "labels"),
        (lambda f: as_classifier(f, labels=["joy", ""]), "labels"),
        (lambda f: as_classifier(f, labels=["joy", "\ud800"]), "labels"),
        (lambda f: as_classifier(f, labels=["joy", "\x1b[31m"]), "labels"),
        (lambda f: as_classifier(f, labels=["joy", "x" * 257]), "labels"),
        (lambda f: as_classifier(f, pooling="mean"), "pooling"),
        (lambda f: as_classifier(f, normalize=True), "normalize"),
        (lambda f: edit(f, normalize=False), "normalize"),
        (lambda f: edit(f, normalize=1), "normalize"),
        (lambda f: edit(f, dtype="float64"), "dtype"),
        (lambda f: edit(f, max_tokens=0), "max_tokens"),
        (lambda f: edit(f, max_tokens=True), "max_tokens"),
        (lambda f: edit(f, dimensions="64"), "dimensions"),
        (lambda f: edit(f, licence=None), "keys"),
        (lambda f: edit(f, entry_point="model:load"), "keys"),
        (lambda f: edit(f, files={}), "files"),
        (lambda f: edit(f, files={"../model.safetensors": "0" * 64}), "file name"),
    ],
)
def test_a_folder_that_differs_from_its_manifest_is_refused(folder: Path, change: Change, complaint: str) -> None:
    """Every way in which a folder can be wrong has a refusal of its own that says what is wrong."""
    change(folder)
    with pytest.raises(ConfigError, match=complaint):
        read_folder(folder)


def test_a_manifest_survives_its_own_bytes(folder: Path) -> None:
    """Writing and parsing a manifest gives the same manifest and the same bytes."""
    manifest = read_folder(folder).manifest
    assert parse_manifest(manifest.to_bytes()) == manifest
    assert parse_manifest(manifest.to_bytes()).to_bytes() == manifest.to_bytes()


def test_a_manifest_names_what_a_classifier_scores(folder: Path) -> None:
    """Labels are part of the manifest, so the digest in a result says what its numbers stand for."""
    as_classifier(folder)
    manifest = parse_manifest((folder / MANIFEST).read_bytes())
    assert manifest.labels == ("joy", "anger")
    assert parse_manifest(manifest.to_bytes()) == manifest


def test_a_manifest_cannot_be_built_with_a_file_outside_the_folder(folder: Path) -> None:
    """The checks hold for manifests made in code as well as for those read."""
    manifest: Manifest = read_folder(folder).manifest
    with pytest.raises(ConfigError, match="file name"):
        replace(manifest, files=dict(manifest.files) | {"a/b.json": "0" * 64})
