"""Model folders of any size with seeded weights, for benchmarks on machines that can download nothing.

Speed does not depend on what the weights say; it does depend on how many tokens a text has, so the tokeniser is a
WordPiece over the words of the standard library's docstrings: about as many tokens per text as BERT's own.

May import: everything. Called by bench.gpu.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

import safetensors.torch
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from infra import docstrings
from worker.models.bert_weights import ARCHITECTURE, BertConfig
from worker.models.manifest import CONFIG, MANIFEST, TOKENIZER, WEIGHTS, Manifest

SPECIAL: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY: Final = 30_522  #: BERT's.


class Size(NamedTuple):
    """Shape of an encoder."""

    layers: int
    width: int
    heads: int
    inner: int
    max_tokens: int

    def flops(self, lengths: list[int]) -> float:
        """Return the floating point operations of a forward pass over rows of these lengths, without padding."""
        linear = 2 * (4 * self.width**2 + 2 * self.width * self.inner)
        return float(self.layers * sum(length * (linear + 4 * length * self.width) for length in lengths))


SIZES: Final = {
    "large": Size(layers=24, width=1_024, heads=16, inner=4_096, max_tokens=512),
    "tiny": Size(layers=2, width=64, heads=4, inner=128, max_tokens=128),
}
MINILM_SIZE: Final = Size(layers=6, width=384, heads=12, inner=1_536, max_tokens=256)


def write(directory: Path, name: str, size: Size, *, seed: int = 7) -> Path:
    """Write the model folder `directory`/`name`, its weights in bfloat16.

    Returns:
        The model folder.
    """
    vocabulary = _vocabulary()
    fields = {
        "architectures": [ARCHITECTURE],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": size.width,
        "intermediate_size": size.inner,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": size.max_tokens,
        "num_attention_heads": size.heads,
        "num_hidden_layers": size.layers,
        "type_vocab_size": 2,
        "vocab_size": VOCABULARY,
    }
    config = json.dumps(fields).encode()
    contents = {
        CONFIG: config,
        WEIGHTS: _weights(BertConfig.parse(config), seed),
        TOKENIZER: _tokenizer(vocabulary).to_str().encode(),
    }
    manifest = Manifest(
        name=name,
        version=str(seed),
        task="embed",
        licence="CC0-1.0",
        max_tokens=size.max_tokens,
        dimensions=size.width,
        pooling="mean",
        normalize=True,
        dtype="bfloat16",
        files={file: hashlib.sha256(content).hexdigest() for file, content in contents.items()},
    )
    folder = directory / name
    folder.mkdir(parents=True)
    for file, content in {**contents, MANIFEST: manifest.to_bytes()}.items():
        (folder / file).write_bytes(content)
    return folder


def _vocabulary() -> dict[str, int]:
    characters = string.ascii_lowercase + string.digits + string.punctuation
    entries = dict.fromkeys([*SPECIAL, *characters, *(f"##{character}" for character in characters)])
    words = Counter(word for text in docstrings.texts() for word in re.findall(r"[a-z]+", text.lower()))
    for word, _ in words.most_common():
        if len(entries) == VOCABULARY:
            break
        entries[word] = None
    return {entry: index for index, entry in enumerate(entries)}


def _tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=SPECIAL[1]))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    return tokenizer


def _weights(config: BertConfig, seed: int) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in sorted(config.shapes().items()):
        is_norm = "LayerNorm.weight" in name
        drawn = torch.randn(shape, generator=generator) * (0.1 if is_norm else 0.02)
        tensors[name] = (drawn + (1.0 if is_norm else 0.0)).to(torch.bfloat16)
    return safetensors.torch.save(tensors)
