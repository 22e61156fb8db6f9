"""Model folders of any size with seeded weights, for benchmarks on machines that can download nothing.

Speed does not depend on what the weights say; it does depend on how many tokens a text has, so the tokeniser is a
WordPiece over the words of the standard library's docstrings: about as many tokens per text as BERT's own.

May import: everything. Called by bench.gpu.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Final

import torch

from infra import docstrings, seeded_folder
from infra.seeded_folder import Shape
from worker.models.bert_weights import BertConfig
from worker.models.manifest import CONFIG, EMBED, TOKENIZER, WEIGHTS, Manifest

VOCABULARY: Final = 30_522  #: BERT's.
SIZES: Final = {
    "large": Shape(layers=24, width=1_024, heads=16, inner=4_096, max_tokens=512),
    "tiny": Shape(layers=2, width=64, heads=4, inner=128, max_tokens=128),
}


def write(directory: Path, name: str, shape: Shape, *, seed: int = 7) -> Path:
    """Write the model folder `directory`/`name`, its weights in bfloat16.

    Returns:
        The model folder.
    """
    words = Counter(word for text in docstrings.texts() for word in re.findall(r"[a-z]+", text.lower()))
    tokenizer = seeded_folder.bert_tokenizer((word for word, _ in words.most_common()), most=VOCABULARY)
    config = json.dumps(seeded_folder.bert_config(shape, vocabulary=VOCABULARY)).encode()
    contents = {
        CONFIG: config,
        WEIGHTS: seeded_folder.draw(BertConfig.parse(config), seed, scale=lambda _: 0.02, dtype=torch.bfloat16),
        TOKENIZER: tokenizer.to_str().encode(),
    }
    manifest = Manifest(
        name=name,
        version=str(seed),
        task=EMBED,
        licence="CC0-1.0",
        max_tokens=shape.max_tokens,
        dimensions=shape.width,
        pooling="mean",
        normalize=True,
        dtype="bfloat16",
        files=seeded_folder.hashes(contents),
    )
    return seeded_folder.write(directory, manifest, contents)
