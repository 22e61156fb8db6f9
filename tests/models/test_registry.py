"""Which models an engine loads, and how a job header finds one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from infra import tiny_model
from mrgc.errors import ConfigError, UnknownModel
from worker.models import registry
from worker.models.base import Tokens
from worker.models.device import choose_dtype, lists_bf16
from worker.models.manifest import CONFIG, MANIFEST, TOKENIZER, WEIGHTS


@pytest.fixture
def models(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder of model folders to be spoilt."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "models"))


def rewrite(models: Path, name: str, content: bytes, **manifest: Any) -> None:
    """Replace a file of the tiny model and list it with its true hash, so that only its meaning can be wrong."""
    folder = models / tiny_model.NAME
    fields = json.loads((folder / MANIFEST).read_bytes()) | manifest
    fields["files"][name] = hashlib.sha256(content).hexdigest()
    (folder / name).write_bytes(content)
    (folder / MANIFEST).write_text(json.dumps(fields))


def change_config(models: Path, **changes: Any) -> None:
    """Change values of config.json."""
    fields = json.loads((models / tiny_model.NAME / CONFIG).read_bytes()) | changes
    rewrite(models, CONFIG, json.dumps(fields).encode())


def change_weights(models: Path, **tensors: torch.Tensor | None) -> None:
    """Change tensors, dots in their names written as double underscores; None removes one."""
    known = safetensors.torch.load((models / tiny_model.NAME / WEIGHTS).read_bytes())
    for name, tensor in tensors.items():
        known.pop(name.replace("__", "."), None)
        if tensor is not None:
            known[name.replace("__", ".")] = tensor
    rewrite(models, WEIGHTS, safetensors.torch.save(known))


def load(models: Path) -> registry.Registry:
    """Load a folder the way the engine does."""
    return registry.load(models, device="cpu", dtype="fp32")


def test_a_model_is_found_by_name_and_by_name_with_digest(models: Path) -> None:
    """A job header may pin the digest or leave it to the engine."""
    loaded = load(models)
    model = loaded.find(tiny_model.NAME)
    assert loaded.find(f"{tiny_model.NAME}@sha256:{model.digest}") is model
    assert [each.name for each in loaded] == [tiny_model.NAME]


@pytest.mark.parametrize("wanted", ["other", f"{tiny_model.NAME}@sha256:{'0' * 64}", f"{tiny_model.NAME}@sha256:"])
def test_another_name_or_digest_is_unknown(models: Path, wanted: str) -> None:
    """A model whose manifest changed is not served in place of the one that was asked for."""
    loaded = load(models)
    if wanted.endswith(":"):
        wanted += "f" * 64
    with pytest.raises(UnknownModel):
        loaded.find(wanted)


def test_several_models_are_loaded_once_and_found_by_name(models: Path) -> None:
    """Every folder is one model, and each job gets the one that it names."""
    tiny_model.write(models, name="second", seed=8)
    loaded = load(models)
    first, second = loaded.find(tiny_model.NAME), loaded.find("second")
    assert [each.name for each in loaded] == ["second", tiny_model.NAME]
    assert loaded.find(f"second@sha256:{second.digest}") is second
    with pytest.raises(UnknownModel):
        loaded.find(f"second@sha256:{first.digest}")
    (tokens,) = first.tokenise(["the same text"])
    assert isinstance(tokens, Tokens)
    assert not np.array_equal(first.forward([tokens.ids]), second.forward([tokens.ids]))


def tiny_bytes(models: Path) -> int:
    """Return what the tiny model's tensors take in float32, by the library that wrote them."""
    tensors = safetensors.torch.load((models / tiny_model.NAME / WEIGHTS).read_bytes())
    return sum(4 * tensor.numel() for tensor in tensors.values())


def test_models_that_just_fit_the_budget_are_loaded(models: Path) -> None:
    """The budget is compared to the byte, in the type that the engine computes in."""
    tiny_model.write(models, name="second")
    assert len(list(registry.load(models, device="cpu", dtype="fp32", memory_bytes=2 * tiny_bytes(models)))) == 2
    assert len(list(registry.load(models, device="cpu", dtype="bf16", memory_bytes=tiny_bytes(models)))) == 2


@pytest.mark.parametrize(("dtype", "share"), [("fp32", 1), ("bf16", 2)])
def test_models_over_the_budget_are_refused_by_name_and_by_how_much(models: Path, dtype: str, share: int) -> None:
    """The operator reads which models need what, and what is missing."""
    tiny_model.write(models, name="second")
    need = tiny_bytes(models) // share
    complaint = f"need {2 * need} bytes .* 100 more than the {2 * need - 100} of .*: second {need}, tiny-bert {need}$"
    with pytest.raises(ConfigError, match=complaint):
        registry.load(models, device="cpu", dtype=dtype, memory_bytes=2 * need - 100)


def test_the_budget_is_compared_before_any_weight_is_read(models: Path) -> None:
    """A model of a terabyte is refused by its size on disk, in no time and in no memory."""
    folder = models / tiny_model.NAME
    entry = {"dtype": "F32", "shape": [1 << 18, 1 << 15], "data_offsets": [0, 1 << 35]}
    header = json.dumps({"embeddings.word_embeddings.weight": entry}).encode()
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(folder / WEIGHTS, 8 + len(header) + (1 << 35))
    with pytest.raises(ConfigError, match=f"tiny-bert {1 << 35}$"):
        registry.load(models, device="cpu", dtype="fp32", memory_bytes=1 << 34)


def test_a_draft_is_not_a_model(models: Path) -> None:
    """A hidden folder is one that somebody is still writing; it becomes a model by getting its name."""
    (models / ".fetch-abc").mkdir()
    assert [model.name for model in load(models)] == [tiny_model.NAME]


def test_what_is_wrong_is_said_with_the_folder_that_it_is_in(models: Path) -> None:
    """An engine has many folders, and all have files of the same names."""
    tiny_model.write(models, name="second")
    (models / "second" / TOKENIZER).write_bytes(b"{}")
    with pytest.raises(ConfigError, match=r"model folder second: tokenizer\.json differs from its manifest's hash"):
        load(models)


def test_a_folder_without_models_is_refused(tmp_path: Path) -> None:
    """An engine with nothing to serve does not start."""
    with pytest.raises(ConfigError, match="no model"):
        load(tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    """A wrong MRGC_MODELS is a configuration error, not a traceback."""
    with pytest.raises(ConfigError, match="MRGC_MODELS"):
        load(tmp_path / "absent")


def test_a_folder_without_manifest_is_refused_and_not_skipped(models: Path) -> None:
    """Half a model folder is noticed at start, not when a job asks for it."""
    (models / "half").mkdir()
    with pytest.raises(ConfigError, match="half"):
        load(models)


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["GPT2LMHeadModel"]},
        {"architectures": ["BertModel", "Other"]},
        {"architectures": None},
        {"hidden_act": "gelu_new"},
        {"position_embedding_type": "relative_key"},
        {"hidden_size": 65},
        {"hidden_size": 1 << 40},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": True},
        {"num_attention_heads": 5},
        {"vocab_size": -1},
        {"layer_norm_eps": 0},
        {"layer_norm_eps": "1e-12"},
        {"num_hidden_layers": 3},
        {"max_position_embeddings": 64},
    ],
)
def test_an_unknown_architecture_or_configuration_is_refused(models: Path, changes: dict[str, Any]) -> None:
    """Only what this encoder computes is loaded; everything else fails closed at start."""
    change_config(models, **changes)
    with pytest.raises(ConfigError):
        load(models)


@pytest.mark.parametrize(
    "tensors",
    [
        {"embeddings__LayerNorm__weight": torch.ones(63)},
        {"embeddings__LayerNorm__weight": torch.ones(64, 1)},
        {"embeddings__LayerNorm__weight": torch.ones(64, dtype=torch.float16)},
        {"embeddings__LayerNorm__weight": None},
        {"encoder__layer__2__output__dense__bias": torch.ones(64)},
        {"lm_head__weight": torch.ones(2)},
        {"embeddings__LayerNorm__weight": torch.full((64,), float("nan"))},
    ],
)
def test_wrong_weights_are_refused(models: Path, tensors: dict[str, torch.Tensor | None]) -> None:
    """A tensor that is missing, unknown, misshapen, of another type or not a number keeps the engine from starting."""
    change_weights(models, **tensors)
    with pytest.raises(ConfigError):
        load(models)


def test_unused_tensors_of_common_checkpoints_are_allowed(models: Path) -> None:
    """The pooler and the position ids that published checkpoints carry do no harm."""
    change_weights(models, pooler__dense__weight=torch.ones(64, 64), embeddings__position_ids=torch.arange(128))
    assert load(models).find(tiny_model.NAME).name == tiny_model.NAME


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"\xff" * 64, b'{"not": "safetensors"}'])
def test_weights_that_are_not_safetensors_are_refused(models: Path, content: bytes) -> None:
    """Garbage behind the right hash is a configuration error."""
    rewrite(models, WEIGHTS, content)
    with pytest.raises(ConfigError, match="safetensors"):
        load(models)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"version": "1.0"}', b"\xff"])
def test_a_broken_tokeniser_is_refused(models: Path, content: bytes) -> None:
    """A tokeniser that cannot be read is a configuration error."""
    rewrite(models, TOKENIZER, content)
    with pytest.raises(ConfigError, match="tokenizer"):
        load(models)


def test_a_tokeniser_with_more_ids_than_embeddings_is_refused(models: Path) -> None:
    """No text can make an id that has no embedding."""
    definition = json.loads((models / tiny_model.NAME / TOKENIZER).read_bytes())
    definition["model"]["vocab"]["surplus"] = len(definition["model"]["vocab"])
    rewrite(models, TOKENIZER, json.dumps(definition).encode())
    with pytest.raises(ConfigError, match="vocabulary"):
        load(models)


def test_a_tokeniser_of_another_kind_is_refused(models: Path) -> None:
    """Only a BERT tokeniser keeps the promise that words end at white space."""
    definition = json.loads((models / tiny_model.NAME / TOKENIZER).read_bytes())
    definition["pre_tokenizer"] = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}
    rewrite(models, TOKENIZER, json.dumps(definition).encode())
    with pytest.raises(ConfigError, match="bert"):
        load(models)


def test_a_device_that_is_not_there_is_refused(models: Path) -> None:
    """MRGC_DEVICE is checked before weights are loaded."""
    with pytest.raises(ConfigError, match="MRGC_DEVICE"):
        registry.load(models, device="cuda:99", dtype="fp32")


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512_bf16\n", True),
        ("processor : 0\nflags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("model name : amx_bf16\nflags\t\t: fpu\n", False),
        ("", False),
    ],
)
def test_bf16_is_native_where_the_cpu_lists_it(cpuinfo: str, *, expected: bool) -> None:
    """The kernel's flags decide, not the name of the processor."""
    assert lists_bf16(cpuinfo) is expected


def test_auto_is_bf16_only_where_it_is_native() -> None:
    """An order is an order; auto asks the device."""
    assert choose_dtype("auto", native_bf16=True) is torch.bfloat16
    assert choose_dtype("auto", native_bf16=False) is torch.float32
    assert choose_dtype("bf16", native_bf16=False) is torch.bfloat16
    assert choose_dtype("fp32", native_bf16=True) is torch.float32
