"""A two-layer BERT with seeded random weights, written as a model folder like any other.

It takes the same code path as a real model (manifest, hashes, tokeniser, packed encoder) and loads in
milliseconds, so tests and the one-machine stack need no download. Its embeddings mean nothing, but equal texts
have equal ones and different texts different ones.

May import: numpy, torch, safetensors, tokenizers, worker.models. Called by tests, bench and infra:
`python -m infra.tiny_model --to DIR`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import string
from pathlib import Path
from typing import Final

import safetensors.torch
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from worker.models.bert_weights import ARCHITECTURE, BertConfig
from worker.models.manifest import CONFIG, MANIFEST, TOKENIZER, WEIGHTS, Manifest

NAME: Final = "tiny-bert"
MAX_TOKENS: Final = 128

_SPECIAL: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS: Final = ("the", "of", "and", "to", "in", "is", "for", "return", "file", "value", "string", "object", "line")
_LAYERS: Final = 2
_WIDTH: Final = 64
_HEADS: Final = 4
_INNER: Final = 128


def write(directory: Path, *, name: str = NAME, seed: int = 7) -> Path:
    """Write a model folder `directory`/`name`; the same name and seed give the same bytes.

    Returns:
        The model folder.
    """
    vocabulary = _vocabulary()
    config = _config(len(vocabulary))
    contents = {
        CONFIG: json.dumps(config, sort_keys=True).encode(),
        WEIGHTS: _weights(BertConfig.parse(json.dumps(config).encode()), seed),
        TOKENIZER: _tokenizer(vocabulary).to_str().encode(),
    }
    manifest = Manifest(
        name=name,
        version=str(seed),
        task="embed",
        licence="CC0-1.0",
        max_tokens=MAX_TOKENS,
        dimensions=_WIDTH,
        pooling="mean",
        normalize=True,
        dtype="float32",
        files={file: hashlib.sha256(content).hexdigest() for file, content in contents.items()},
    )
    folder = directory / name
    folder.mkdir(parents=True)
    for file, content in {**contents, MANIFEST: manifest.to_bytes()}.items():
        (folder / file).write_bytes(content)
    return folder


def _vocabulary() -> dict[str, int]:
    characters = string.ascii_lowercase + string.digits + string.punctuation
    entries = [*_SPECIAL, *characters, *(f"##{character}" for character in characters), *_WORDS]
    return {entry: index for index, entry in enumerate(entries)}


def _config(vocabulary: int) -> dict[str, object]:
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": _WIDTH,
        "intermediate_size": _INNER,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": MAX_TOKENS,
        "num_attention_heads": _HEADS,
        "num_hidden_layers": _LAYERS,
        "type_vocab_size": 2,
        "vocab_size": vocabulary,
    }


def _weights(config: BertConfig, seed: int) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in sorted(config.shapes().items()):
        drawn = torch.randn(shape, generator=generator)
        is_norm = "LayerNorm.weight" in name
        # Wide embeddings and narrow layers: the texts' own tokens stay visible in what comes out.
        scale = 0.1 if is_norm or name.startswith("encoder") else 1.0
        tensors[name] = drawn * scale + (1.0 if is_norm else 0.0)
    return safetensors.torch.save(tensors)


def _tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=_SPECIAL[1]))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    return tokenizer


def main() -> None:
    """Run the command line; print the folder on standard output."""
    parser = argparse.ArgumentParser(prog="python -m infra.tiny_model", description="write a tiny seeded model folder")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder of model folders")
    print(write(parser.parse_args().to))


if __name__ == "__main__":
    main()
