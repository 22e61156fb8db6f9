"""Text generation around vLLM: parameters, prompts, answers, refusals, and what happens where it is not installed."""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from infra import tiny_model
from mrgc.errors import ConfigError, InputInvalid, PayloadError
from mrgc.wire.headers import JSON_TYPE, SAFETENSORS_TYPE
from worker.engine import results
from worker.models import generator, registry
from worker.models.base import Tokens
from worker.models.generation import MAX_NEW_TOKENS, PREFIX, Sampling, TextAnswer
from worker.models.manifest import CONFIG, MANIFEST, TOKENIZER, WEIGHTS, Manifest

DECODER = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4_096}


@pytest.fixture
def models(tiny_folder: Path, tmp_path: Path) -> Path:
    """A folder of model folders with one that generates: sound in form, its weights a few numbers."""
    folder = tmp_path / "writer"
    folder.mkdir()
    contents = {
        CONFIG: json.dumps(DECODER).encode(),
        WEIGHTS: safetensors.torch.save({"lm_head.weight": torch.zeros(2, 2)}),
        TOKENIZER: (tiny_folder / tiny_model.NAME / TOKENIZER).read_bytes(),
    }
    manifest = Manifest(
        name="writer",
        version="1",
        task="generate",
        licence="CC0-1.0",
        max_tokens=2_048,
        dimensions=0,
        pooling="none",
        normalize=False,
        dtype="float32",
        files={name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    )
    for name, content in {**contents, MANIFEST: manifest.to_bytes()}.items():
        (folder / name).write_bytes(content)
    return tmp_path


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_an_engine_without_the_extra_says_which_is_missing(models: Path) -> None:
    """The operator reads what to install, before any weight is read."""
    with pytest.raises(ConfigError, match=r"model folder writer: its task generate needs the extra vllm: pip install"):
        registry.load(models, device="cpu", dtype="fp32", memory_bytes=8 << 30)


def test_its_working_memory_counts_in_the_budget(models: Path) -> None:
    """What vLLM keeps of texts is reserved beside the weights."""
    with pytest.raises(ConfigError, match=f"need {generator.KV_CACHE_BYTES + 16} bytes"):
        registry.load(models, device="cpu", dtype="fp32", memory_bytes=generator.KV_CACHE_BYTES)


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["BertModel"]},
        {"architectures": ["LlamaForCausalLM", "Other"]},
        {"architectures": "LlamaForCausalLM"},
        {"max_position_embeddings": 2_048 + MAX_NEW_TOKENS - 1},
        {"max_position_embeddings": None},
    ],
)
def test_a_decoder_that_is_not_served_is_refused(changes: dict[str, object]) -> None:
    """Only listed architectures are handed to vLLM, with room for what they generate."""
    generator.ensure_served(json.dumps(DECODER).encode(), max_tokens=2_048)
    with pytest.raises(ConfigError):
        generator.ensure_served(json.dumps(DECODER | changes).encode(), max_tokens=2_048)


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": MAX_NEW_TOKENS + 1},
        {"max_new_tokens": True},
        {"max_new_tokens": 1.0},
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"temperature": float("nan")},
        {"temperature": "0"},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_p": True},
        {"top_k": 1_001},
        {"top_k": -1},
        {"seed": 1 << 31},
        {"stop": ["x"]},
        {"logit_bias": {}},
    ],
)
def test_a_parameter_out_of_bounds_fails_the_job(parameters: dict[str, object]) -> None:
    """Nothing that a tenant sends reaches vLLM unbounded."""
    with pytest.raises(PayloadError):
        Sampling.of(parameters)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "max_new_tokens": st.integers(1, MAX_NEW_TOKENS),
            "temperature": st.floats(0, 2, width=32),
            "top_p": st.floats(0.125, 1, width=32) | st.just(1),
            "top_k": st.integers(0, 1_000),
            "seed": st.integers(0, (1 << 31) - 1),
        },
    )
)
def test_parameters_travel_with_each_row(parameters: dict[str, object]) -> None:
    """What a job asked for is what its rows say in the forward pass, whoever shares the batch."""
    answer = TextAnswer(1, Sampling.of(parameters))
    tokens = Tokens(np.arange(100, 100 + PREFIX + 2, dtype=np.int32), is_cut=False)
    answer.expect(0, tokens)
    found = Sampling.of_row(tokens.ids)
    assert found == Sampling.of(parameters)
    assert tokens.ids[PREFIX:].tolist() == [100 + PREFIX, 100 + PREFIX + 1]
    assert generator.sampling_fields(found)["max_tokens"] == parameters.get("max_new_tokens", 128)


def test_a_prompt_has_room_for_its_parameters_and_is_cut_at_the_limit(models: Path) -> None:
    """Over-long inputs come back cut and marked; what is no text fails alone."""
    tokenizer = generator.read_tokenizer((models / "writer" / TOKENIZER).read_bytes())
    ids = tokenizer.encode("the file of the line").ids
    whole = generator.prompt("the file of the line", tokenizer, max_tokens=len(ids))
    cut = generator.prompt("the file of the line", tokenizer, max_tokens=3)
    assert isinstance(whole, Tokens)
    assert isinstance(cut, Tokens)
    assert (whole.ids.tolist(), whole.is_cut) == ([0] * PREFIX + ids, False)
    assert (cut.ids.tolist(), cut.is_cut) == ([0] * PREFIX + ids[:3], True)
    for wrong in ("", 7, None, b"x", "\ud800"):
        assert isinstance(generator.prompt(wrong, tokenizer, max_tokens=3), InputInvalid)


@given(st.lists(st.none() | st.text(st.characters(codec="utf-8"), max_size=20), min_size=1, max_size=6))
def test_texts_come_back_in_order_in_both_forms(texts: list[str | None]) -> None:
    """A text that was generated is the text that the tenant reads; where one failed, there is none."""
    answer = TextAnswer(len(texts), Sampling())
    failed = {place: InputInvalid("no") for place, text in enumerate(texts) if text is None}
    for place, text in enumerate(texts):
        if text is not None:
            answer.put(place, np.frombuffer(bytearray(text.encode()), dtype=np.uint8))
    if len(failed) == len(texts):
        return
    body = results.build(answer, failed, items=len(texts), accept=JSON_TYPE, max_bytes=1 << 20)
    assert json.loads(body.data)["texts"] == texts
    assert len(body.data) >= answer.least_bytes(JSON_TYPE)
    body = results.build(answer, failed, items=len(texts), accept=SAFETENSORS_TYPE, max_bytes=1 << 20)
    tensors = safetensors.torch.load(bytes(body.data))
    pieces = torch.split(tensors["texts"], tensors["lengths"].to(torch.int64).tolist())
    assert [bytes(piece.tolist()).decode() for piece in pieces] == [text or "" for text in texts]
    answer.wipe()
    assert not tensors["lengths"].sum() or not answer.tensors().arrays["texts"].any()
