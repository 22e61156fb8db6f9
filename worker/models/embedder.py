"""Text models with a BERT-family encoder: a verified folder turned into tokeniser, encoder and head.

Called by worker.models.registry; implements `worker.models.base.Model`. May import: the standard library, numpy, torch,
mrgc.errors, worker.models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from mrgc.errors import ConfigError
from worker.models.answers import EmbeddingAnswer, ScoreAnswer, ensure_no_parameters
from worker.models.bert import BertEncoder
from worker.models.bert_weights import BertConfig, load_weights
from worker.models.device import out_of_memory_as_ours
from worker.models.heads import Classifier, unit_vectors
from worker.models.manifest import CLASSIFY, CLASSIFY_TOKENS, CONFIG, EMBED, TOKENIZER, WEIGHTS
from worker.models.token_answer import TokenAnswer
from worker.models.tokenizer import TextTokenizer
from worker.models.zero_shot import begin_zero_shot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mrgc.errors import ModelError
    from worker.models.base import Answer, Ids, Outputs, Tokens
    from worker.models.folder import ModelFolder
    from worker.models.heads import Head
    from worker.models.manifest import Manifest


class TextEmbedder:
    """A BERT-family encoder with its head, loaded and warm: embeddings, scores of texts, or scores of their tokens.

    Args:
        folder: the verified folder.
        device: where the encoder runs.
        dtype: what it computes in; pooling is float32.

    Raises:
        ConfigError: the files contradict each other or are not of an architecture served here.
    """

    def __init__(self, folder: ModelFolder, *, device: torch.device, dtype: torch.dtype) -> None:
        manifest = folder.manifest
        config = BertConfig.parse(folder.read(CONFIG), labels=len(manifest.labels))
        _ensure_agreement(manifest, config)
        weights = load_weights(folder.read(WEIGHTS), config, stored=manifest.dtype, device=device, dtype=dtype)
        self.name = manifest.name
        self.digest = folder.digest
        self.dimensions = manifest.dimensions
        self.max_tokens = manifest.max_tokens
        self.vocabulary = config.vocab_size
        self.device = device
        self._task, self._labels = manifest.task, manifest.labels
        self._config, self._weights, self._pooling = config, weights, manifest.pooling
        self._head: Head = Classifier(weights.head, multi_label=config.multi_label) if weights.head else unit_vectors
        self._encoder = BertEncoder(config, weights, pooling=manifest.pooling, head=self._head)
        self._tokenizer = TextTokenizer(
            folder.read(TOKENIZER),
            max_tokens=manifest.max_tokens,
            vocabulary=config.vocab_size,
            with_offsets=manifest.task == CLASSIFY_TOKENS,
        )
        self.recipe = self._tokenizer.recipe
        self._prove()

    def answer(self, items: int, parameters: Mapping[str, object]) -> Answer:
        """See `worker.models.base.Model.answer`."""
        if self._task == EMBED and "labels" in parameters:
            return begin_zero_shot(items, self.dimensions, parameters)
        ensure_no_parameters(parameters)
        if self._task == CLASSIFY:
            return ScoreAnswer(items, self._labels)
        if self._task == CLASSIFY_TOKENS:
            return TokenAnswer(items, self._labels)
        return EmbeddingAnswer(items, self.dimensions)

    def tokenise(self, inputs: Sequence[object]) -> list[Tokens | ModelError]:
        """See `worker.models.base.Model.tokenise`."""
        return self._tokenizer.tokenise(inputs)

    def forward(self, rows: Sequence[Ids]) -> Outputs:
        """See `worker.models.base.Model.forward`."""
        with out_of_memory_as_ours():
            if self._task == CLASSIFY_TOKENS:
                return list(self._encoder.embed_tokens(rows))
            return self._encoder.embed(rows)

    def _prove(self) -> None:
        """Pay for lazy initialisation before the first tenant does."""
        self._prove_numbers()

    def _prove_numbers(self) -> None:
        """Raise ConfigError unless the weights give numbers."""
        longest = np.zeros(self.max_tokens, dtype=np.int32)
        if not all(np.isfinite(output).all() for output in self.forward([longest, longest[:1]])):
            raise ConfigError("model does not compute finite numbers")


def _ensure_agreement(manifest: Manifest, config: BertConfig) -> None:
    numbers = config.labels if config.architecture.head else config.hidden_size
    if (
        manifest.task != config.architecture.task
        or manifest.dimensions != numbers
        or manifest.max_tokens > config.longest
    ):
        raise ConfigError("manifest and config.json contradict each other")
