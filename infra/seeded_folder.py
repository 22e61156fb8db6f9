"""What model folders with seeded weights are made of: shapes, a WordPiece tokeniser, drawn tensors, the files.

May import: torch, safetensors, tokenizers, worker.models. Called by infra.tiny_model and bench.seeded_model.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import safetensors.torch
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from worker.models.bert_weights import ARCHITECTURE, BertConfig
from worker.models.manifest import MANIFEST, Manifest

_SPECIAL: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Shape(NamedTuple):
    """Shape of an encoder."""

    layers: int
    width: int
    heads: int
    inner: int
    max_tokens: int


def bert_config(shape: Shape, *, vocabulary: int) -> dict[str, object]:
    """Return the fields of a BERT encoder's config.json."""
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": shape.max_tokens,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "type_vocab_size": 2,
        "vocab_size": vocabulary,
    }


def bert_tokenizer(words: Iterable[str], *, most: int | None = None) -> Tokenizer:
    """Make a WordPiece tokeniser over printable ASCII and these words, cut to `most` entries."""
    characters = string.ascii_lowercase + string.digits + string.punctuation
    entries = dict.fromkeys([*_SPECIAL, *characters, *(f"##{character}" for character in characters), *words])
    vocabulary = {entry: index for index, entry in enumerate(islice(entries, most))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=_SPECIAL[1]))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    return tokenizer


def draw(config: BertConfig, seed: int, *, scale: Callable[[str], float], dtype: torch.dtype) -> bytes:
    """Draw every tensor of a model, norms around one with a spread of 0.1; returns safetensors.

    Args:
        config: names and shapes.
        seed: the same gives the same bytes.
        scale: spread of a tensor that is no norm's, by name.
        dtype: of the stored weights.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in sorted(config.shapes().items()):
        drawn = torch.randn(shape, generator=generator)
        tensors[name] = (drawn * 0.1 + 1.0 if "LayerNorm.weight" in name else drawn * scale(name)).to(dtype)
    return safetensors.torch.save(tensors)


def hashes(contents: Mapping[str, bytes]) -> dict[str, str]:
    """Return the SHA-256 of each file by name, as a manifest lists them."""
    return {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}


def write(directory: Path, manifest: Manifest, contents: Mapping[str, bytes]) -> Path:
    """Write the model folder `directory`/`manifest.name`; returns it."""
    folder = directory / manifest.name
    folder.mkdir(parents=True)
    for file, content in {**contents, MANIFEST: manifest.to_bytes()}.items():
        (folder / file).write_bytes(content)
    return folder
