"""A two-layer BERT or RoBERTa with seeded random weights, written as a model folder like any other.

It takes the same code path as a real model (manifest, hashes, tokeniser, packed encoder) and loads in
milliseconds, so tests and the one-machine stack need no download. Its embeddings mean nothing, but equal texts
have equal ones and different texts different ones.

May import: torch, tokenizers, worker.models, infra.seeded_folder. Called by tests, bench and infra:
`python -m infra.tiny_model --to DIR`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Final, NamedTuple

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import RobertaProcessing

from infra import seeded_folder
from infra.seeded_folder import Shape
from worker.models.bert_weights import ARCHITECTURE, ARCHITECTURES, BertConfig
from worker.models.manifest import CONFIG, EMBED, TOKENIZER, WEIGHTS, Manifest

NAME: Final = "tiny-bert"
MAX_TOKENS: Final = 128

_WORDS: Final = ("the", "of", "and", "to", "in", "is", "for", "return", "file", "value", "string", "object", "line")
_LAYERS: Final = 2
_HEADS: Final = 4
_INNER: Final = 128
#: RoBERTa's padding token, behind whose place its positions begin.
_PADDING: Final = 1


class Kind(NamedTuple):
    """What a tiny model is to be."""

    architecture: str = ARCHITECTURE
    #: mean or cls; of a model that embeds.
    pooling: str = "mean"
    #: Of a model that classifies.
    labels: tuple[str, ...] = ()
    width: int = 64
    multi_label: bool = False


def write(directory: Path, *, name: str = NAME, seed: int = 7, kind: Kind = Kind()) -> Path:  # noqa: B008  immutable
    """Write a model folder `directory`/`name`; the same name, seed and kind give the same bytes.

    Returns:
        The model folder.
    """
    architecture = ARCHITECTURES[kind.architecture]
    tokenizer = _roberta_tokenizer() if architecture.counts_behind_padding else seeded_folder.bert_tokenizer(_WORDS)
    config = json.dumps(_config(kind, tokenizer.get_vocab_size()), sort_keys=True).encode()
    encoder = BertConfig.parse(config, labels=len(kind.labels))
    contents = {
        CONFIG: config,
        WEIGHTS: seeded_folder.draw(encoder, seed, scale=_scale, dtype=torch.float32),
        TOKENIZER: tokenizer.to_str().encode(),
    }
    manifest = Manifest(
        name=name,
        version=str(seed),
        task=architecture.task,
        licence="CC0-1.0",
        max_tokens=MAX_TOKENS,
        dimensions=len(kind.labels) or kind.width,
        pooling={0: kind.pooling, 1: "none", 2: "cls"}[len(architecture.head)],
        normalize=architecture.task == EMBED,
        dtype="float32",
        files=seeded_folder.hashes(contents),
        labels=kind.labels,
    )
    return seeded_folder.write(directory, manifest, contents)


def _config(kind: Kind, vocabulary: int) -> dict[str, object]:
    shape = Shape(_LAYERS, kind.width, _HEADS, _INNER, MAX_TOKENS)
    config = seeded_folder.bert_config(shape, vocabulary=vocabulary) | {"architectures": [kind.architecture]}
    if ARCHITECTURES[kind.architecture].counts_behind_padding:
        config |= {"model_type": "roberta", "pad_token_id": _PADDING, "type_vocab_size": 1}
        config |= {"max_position_embeddings": MAX_TOKENS + _PADDING + 1, "layer_norm_eps": 1e-5}
    if kind.multi_label:
        config["problem_type"] = "multi_label_classification"
    return config


def _scale(name: str) -> float:
    # Wide embeddings and narrow layers: the texts' own tokens stay visible in what comes out.
    return 0.1 if "encoder." in name else 1.0


def _roberta_tokenizer() -> Tokenizer:
    special = ("<s>", "<pad>", "</s>", "<unk>")
    words = [f"\u0120{word}" for word in _WORDS]
    pieces = sorted(
        {word[:length] for word in words for length in range(2, len(word) + 1)}, key=lambda each: (len(each), each)
    )
    entries = [*special, *sorted(ByteLevel.alphabet()), *pieces]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    tokenizer = Tokenizer(BPE(vocabulary, [(piece[:-1], piece[-1]) for piece in pieces]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = RobertaProcessing(
        ("</s>", vocabulary["</s>"]), ("<s>", vocabulary["<s>"]), trim_offsets=True, add_prefix_space=False
    )
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def main() -> None:
    """Run the command line; print the folder on standard output."""
    parser = argparse.ArgumentParser(prog="python -m infra.tiny_model", description="write a tiny seeded model folder")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder of model folders")
    print(write(parser.parse_args().to))


if __name__ == "__main__":
    main()
