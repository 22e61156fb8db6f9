"""Every architecture served, against the reference implementation of each, with seeded weights."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray

from infra import tiny_model
from infra.tiny_model import Kind
from tests.models.test_bert import ORACLE, ensure_independent, forward, rows_of
from worker.models import registry
from worker.models.base import Ids, Model
from worker.models.bert_weights import ARCHITECTURES
from worker.models.manifest import CONFIG, WEIGHTS

LABELS: Final = ("joy", "anger", "neither of the two")
KINDS: Final = {
    "bert-mean": Kind(),
    "bert-cls": Kind(pooling="cls"),
    "bert-classes": Kind("BertForSequenceClassification", labels=LABELS),
    "bert-multi-label": Kind("BertForSequenceClassification", labels=LABELS, multi_label=True),
    "bert-tokens": Kind("BertForTokenClassification", labels=LABELS),
    "roberta-mean": Kind("RobertaModel"),
    "roberta-cls": Kind("RobertaModel", pooling="cls"),
    "roberta-classes": Kind("RobertaForSequenceClassification", labels=LABELS),
    "roberta-tokens": Kind("RobertaForTokenClassification", labels=LABELS),
}
EVERY_KIND = pytest.mark.parametrize("name", KINDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of model folders, one of each kind."""
    made = tmp_path_factory.mktemp("families")
    for name, kind in KINDS.items():
        tiny_model.write(made, name=name, kind=kind)
    return made


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, Model]:
    """The models by name, in float32."""
    return {model.name: model for model in registry.load(folder, device="cpu", dtype="fp32")}


def outputs_of(model: Model, rows: Sequence[Ids]) -> list[NDArray[Any]]:
    """Run one token batch to a list of outputs."""
    return list(model.forward(rows))


def reference_of(folder: Path, kind: Kind) -> Callable[[Ids], NDArray[np.float32]]:
    """Build the reference implementation from the same folder; it runs one text at a time, unpadded."""
    transformers = pytest.importorskip("transformers")
    config = json.loads((folder / CONFIG).read_bytes()) | {"num_labels": len(kind.labels) or 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = getattr(transformers, kind.architecture)
        reference = module(
            getattr(transformers, f"{kind.architecture.partition('For')[0].removesuffix('Model')}Config")(**config)
        )
    reference.eval()
    missing, unexpected = reference.load_state_dict(
        safetensors.torch.load((folder / WEIGHTS).read_bytes()), strict=False
    )
    assert not unexpected
    assert all("pooler" in name for name in missing), missing

    def run(ids: Ids) -> NDArray[np.float32]:
        with torch.inference_mode():
            found = reference(input_ids=torch.from_numpy(ids.astype(np.int64))[None])
        return np.asarray(_finish(found, kind)[0], dtype=np.float32)

    return run


def _finish(found: Mapping[str, torch.Tensor], kind: Kind) -> torch.Tensor:
    if not kind.labels:
        hidden = found["last_hidden_state"]
        return torch.nn.functional.normalize(hidden.mean(1) if kind.pooling == "mean" else hidden[:, 0], dim=-1)
    return found["logits"].sigmoid() if kind.multi_label else found["logits"].softmax(-1)


@ORACLE
@EVERY_KIND
def test_float32_equals_the_reference(models: dict[str, Model], folder: Path, name: str, texts: list[str]) -> None:
    """Packed, in company, and by the reference alone: the same numbers up to rounding, for every architecture."""
    rows = rows_of(models[name], texts)
    run = reference_of(folder / name, KINDS[name])
    for found, row in zip(outputs_of(models[name], rows), rows, strict=True):
        expected = run(row)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-5


@EVERY_KIND
def test_every_architecture_gives_the_same_bits_in_any_company(
    models: dict[str, Model], name: str, texts: list[str]
) -> None:
    """What a tenant is answered does not depend on who else had jobs at that moment, nor on the head."""
    ensure_independent(models[name], rows_of(models[name], texts), compositions=15)


def test_every_architecture_has_a_test() -> None:
    """A new one needs a reference."""
    assert {kind.architecture for kind in KINDS.values()} == ARCHITECTURES.keys()


@pytest.mark.parametrize("name", ["bert-classes", "bert-multi-label", "roberta-classes"])
def test_scores_are_probabilities(models: dict[str, Model], name: str, texts: list[str]) -> None:
    """Of labels that exclude one another they add up to one; of others each lies between zero and one."""
    scores = forward(models[name], rows_of(models[name], texts))
    assert ((scores >= 0) & (scores <= 1)).all()
    assert np.allclose(scores.sum(axis=1), 1, atol=1e-6) != KINDS[name].multi_label
