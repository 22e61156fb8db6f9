"""What a model folder may not hold, each as the real thing: nothing in a folder is ever executed."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch

from infra import tiny_model
from mrgc.errors import ConfigError
from tests.models.hostile import Program, put, read_all, relist
from worker.models.folder import survey
from worker.models.manifest import CONFIG, MANIFEST, TOKENIZER, WEIGHTS

ROOT: Final = Path(__file__).parents[2]

Bytes = Callable[[Path], bytes]


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder to be spoilt."""
    return Path(shutil.copytree(tiny_folder / tiny_model.NAME, tmp_path / tiny_model.NAME))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """What a program hidden in a file would leave behind if it ran."""
    return tmp_path / "it-ran"


class Scripted(torch.nn.Module):
    """A module small enough to be compiled in a blink."""

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """Double."""
        return numbers * 2


def _saved(save: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, which is no reason for others to stop writing it
        save(file)
    return file.getvalue()


def _pickle(protocol: int, trace: Path) -> bytes:
    return pickle.dumps(Program(trace), protocol)


def _tar(trace: Path) -> bytes:
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            content = pickle.dumps(Program(trace))
            entry = tarfile.TarInfo("data.pkl")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        return file.getvalue()


def _zip(trace: Path) -> bytes:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("model/data.pkl", pickle.dumps(Program(trace)))
        return file.getvalue()


@cache
def _scripted() -> bytes:
    return _saved(lambda file: torch.jit.save(torch.jit.script(Scripted()), file))


@cache
def _exported() -> bytes:
    return _saved(lambda file: torch.export.save(torch.export.export(Scripted(), (torch.ones(2),)), file))


#: Every way of writing a program that a loader of models would run, by what wrote it.
PROGRAMS: Final[dict[str, Bytes]] = {
    **{f"pickle-{protocol}": partial(_pickle, protocol) for protocol in range(6)},
    "torch.save": lambda trace: _saved(lambda file: torch.save({"weights": Program(trace)}, file)),
    "torch.save-legacy": lambda trace: _saved(
        lambda file: torch.save({"weights": Program(trace)}, file, _use_new_zipfile_serialization=False)
    ),
    "numpy": lambda trace: _saved(lambda file: np.save(file, np.array([Program(trace)]), allow_pickle=True)),
    "zip": _zip,
    "empty zip": lambda _: _saved(lambda file: zipfile.ZipFile(file, "w").close()),
    "tar": _tar,
    "torchscript": lambda _: _scripted(),
    "pt2": lambda _: _exported(),
    "program": lambda _: Path(os.path.realpath("/proc/self/exe")).read_bytes()[:4096],
    "script": lambda trace: f"#!/bin/sh\nmkdir {trace}\n".encode(),
}


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, TOKENIZER, "vocab.txt", "more.safetensors", "added_tokens.json"])
@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_program_under_an_innocent_name_is_refused(folder: Path, trace: Path, kind: str, name: str) -> None:
    """Whatever the suffix says, the bytes are looked at, and nothing of them runs."""
    put(folder, name, PROGRAMS[kind](trace))
    with pytest.raises(ConfigError, match=name):
        read_all(folder)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("pickle-0", "a pickle in text form"),
        ("pickle-1", "not text"),
        ("pickle-4", "a pickle"),
        ("torch.save", "a zip archive, as torch.save"),
        ("torch.save-legacy", "a pickle"),
        ("torchscript", "a zip archive, as torch.save, TorchScript"),
        ("numpy", "a numpy file"),
        ("tar", "an archive"),
        ("program", "a program"),
        ("script", "a script"),
    ],
)
def test_the_operator_is_told_what_a_file_really_is(folder: Path, trace: Path, kind: str, told: str) -> None:
    """Whoever prepared the folder learns which file to convert, and from what."""
    put(folder, "notes.txt", PROGRAMS[kind](trace))
    with pytest.raises(ConfigError, match=rf"notes\.txt is {told}"):
        read_all(folder)


@pytest.mark.parametrize(
    "suffix", ["pt", "pth", "bin", "pkl", "ckpt", "npy", "npz", "pt2", "pte", "joblib", "h5", "so"]
)
def test_a_file_of_a_format_that_may_hold_a_program_is_refused(folder: Path, suffix: str) -> None:
    """A suffix that is not on the list of data formats is refused even for an empty file that the manifest names."""
    put(folder, f"extra.{suffix}", b"")
    with pytest.raises(ConfigError, match=rf"extra\.{suffix} is not a data format"):
        survey(folder)


@pytest.mark.parametrize(
    "name",
    ["modeling_tiny.py", "__init__.py", "setup.pyc", "model.safetensors.py", "MODEL.SAFETENSORS", "json", ".json"],
)
def test_a_python_file_or_a_lookalike_is_refused(folder: Path, name: str) -> None:
    """There is no code in a folder, not even code that nobody would import."""
    put(folder, name, b"pass\n")
    with pytest.raises(ConfigError, match=r"is not a (data format|file name)"):
        survey(folder)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "sub/config.json", "..", ".hidden.json", "a\nb.txt"]
)
def test_a_file_name_that_leaves_the_folder_is_refused(folder: Path, name: str) -> None:
    """A manifest names files beside it and nothing else."""
    relist(folder, **{name: "0" * 64})
    with pytest.raises(ConfigError, match="is not a file name"):
        survey(folder)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, MANIFEST])
def test_a_symbolic_link_for_a_file_is_refused(folder: Path, name: str) -> None:
    """What a link leads to may change after it was judged, and may lie anywhere."""
    outside = folder.parent / f"outside-{name}"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(ConfigError, match="symbolic link"):
        survey(folder)


def test_a_symbolic_link_for_the_folder_is_refused(folder: Path) -> None:
    """A model folder is a folder."""
    real = folder.rename(folder.with_name("real"))
    folder.symlink_to(real)
    with pytest.raises(ConfigError, match="symbolic link"):
        survey(folder)


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_regular_file_is_refused(folder: Path, make: Callable[[Path], object]) -> None:
    """A pipe in the place of the weights would keep the engine waiting for ever."""
    (folder / WEIGHTS).unlink()
    make(folder / WEIGHTS)
    with pytest.raises(ConfigError, match="not a regular file"):
        survey(folder)


@pytest.mark.parametrize(
    ("name", "size_bytes"), [(WEIGHTS, (64 << 30) + 1), (TOKENIZER, (64 << 20) + 1), (MANIFEST, 65_537)]
)
def test_a_file_over_its_cap_is_refused_before_it_is_read(folder: Path, name: str, size_bytes: int) -> None:
    """A sparse file of any length costs its writer nothing."""
    os.truncate(folder / name, size_bytes)
    with pytest.raises(ConfigError, match=f"{name} is over its size limit: {size_bytes} bytes"):
        survey(folder)


@pytest.mark.parametrize(
    "key", ["auto_map", "custom_pipelines", "custom_pipeline", "trust_remote_code", "code_revision"]
)
@pytest.mark.parametrize("depth", [0, 2])
def test_a_configuration_that_names_code_is_refused(folder: Path, key: str, depth: int) -> None:
    """A configuration that would make another loader fetch or import code is refused, however deep it says so."""
    value: object = {key: {"AutoModel": "modeling_tiny.TinyModel"}}
    for _ in range(depth):
        value = [{"text_config": value}]
    put(folder, CONFIG, json.dumps({**json.loads((folder / CONFIG).read_bytes()), "extra": value}).encode())
    with pytest.raises(ConfigError, match=rf"config\.json names code to be loaded: {key}"):
        read_all(folder)


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "generation_config.json", "config_sentence_transformers.json"]
)
def test_any_other_configuration_that_names_code_is_refused(folder: Path, name: str) -> None:
    """Transformers looks for code in more files than config.json."""
    put(folder, name, b'{"auto_map": {"AutoTokenizer": ["other/repository--tokenizer.Tokenizer", null]}}')
    with pytest.raises(ConfigError, match=f"{name} names code to be loaded"):
        read_all(folder)


def test_a_token_may_be_called_like_a_key(folder: Path) -> None:
    """A vocabulary is a table of words, and auto_map is one."""
    put(folder, "vocab.json", b'{"auto_map": 0, "trust_remote_code": 1}')
    read_all(folder)


@pytest.mark.parametrize("content", [b"", b"\xff", b"1", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"{", b"[" * 100])
def test_a_json_file_that_is_not_strict_json_is_refused(folder: Path, content: bytes) -> None:
    """What two parsers would read in two ways is read by none."""
    put(folder, "extra.json", content if content != b"1" else b"\x001")
    with pytest.raises(ConfigError, match=r"extra\.json is not"):
        read_all(folder)


def test_text_that_only_resembles_a_pickle_is_accepted(folder: Path) -> None:
    """Lists of words and licences are what .txt is for."""
    put(folder, "vocab.txt", b"cat\ndog\n.\n")
    put(folder, "LICENSE.txt", b"(c) the authors.\nDo as you please.")
    read_all(folder)


def test_weights_whose_header_length_looks_like_a_pickle_are_accepted(folder: Path) -> None:
    """A header of 640 bytes begins with 80 02, as a pickle of protocol 2 does, and is sound all the same."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(640)
    content = len(header).to_bytes(8, "little") + header + bytes(4)
    assert content.startswith(b"\x80\x02")
    put(folder, "more.safetensors", content)
    read_all(folder)


def test_a_file_that_changes_after_the_survey_is_refused(folder: Path) -> None:
    """The memory budget was judged by a header that no longer stands there, so hash and header are compared again."""
    found = survey(folder)
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ConfigError, match="hash"):
        found.read(WEIGHTS)
    with pytest.raises(ConfigError, match="hash"):
        found.verify()


def test_no_module_of_the_worker_can_read_a_pickle() -> None:
    """Neither torch.load, torch.jit nor any module that unpickles is named anywhere in worker/."""
    found = []
    for path in sorted((ROOT / "worker").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found += [f"{path.name}: {name}" for name in named_in(node) if is_unpickling(name)]
    assert found == []


def named_in(node: ast.AST) -> list[str]:
    """Return the dotted names that a node of a module imports or looks up."""
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom():
            return [f"{node.module}.{alias.name}" for alias in node.names]
        case ast.Attribute():
            return [ast.unparse(node)]
        case _:
            return []


def is_unpickling(name: str) -> bool:
    """Tell whether a dotted name is one by which Python or torch reads programs."""
    readers = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "zipimport", "runpy"}
    calls = (
        "torch.load",
        "torch.jit",
        "torch.export",
        "torch.hub",
        "torch.package",
        "torch.serialization",
        "numpy.load",
    )
    return name.partition(".")[0] in readers or f"{name.replace('np.', 'numpy.')}.".startswith(
        tuple(f"{call}." for call in calls)
    )


@pytest.mark.parametrize("name", ["torch.load", "torch.jit.load", "pickle", "pickle.loads", "np.load", "torch.hub"])
def test_the_rule_sees_what_reads_pickles(name: str) -> None:
    """The rule above would notice each of these."""
    assert is_unpickling(name)
    assert not is_unpickling("torch.loadable")
    assert not is_unpickling("safetensors.torch.load")
