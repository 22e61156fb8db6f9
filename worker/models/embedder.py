"""The text embedding model: a verified folder turned into tokeniser and encoder.

Called by worker.models.registry; implements `worker.models.base.Model`. The one place where torch's own errors
become ours. May import: the standard library, numpy, torch, mrgc.errors, worker.models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from mrgc.errors import ConfigError, DeviceOutOfMemory
from worker.models.answers import EmbeddingAnswer, ensure_no_parameters
from worker.models.bert import BertEncoder
from worker.models.bert_weights import BertConfig, load_weights
from worker.models.manifest import CONFIG, TOKENIZER, WEIGHTS
from worker.models.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mrgc.errors import ModelError
    from worker.models.base import Answer, Embeddings, Ids, Tokens
    from worker.models.folder import ModelFolder


class TextEmbedder:
    """A BERT-family encoder with mean pooling, loaded and warm.

    Args:
        folder: the verified folder.
        device: where the encoder runs.
        dtype: what it computes in; pooling is float32.

    Raises:
        ConfigError: the files contradict each other or are not of an architecture served here.
    """

    def __init__(self, folder: ModelFolder, *, device: torch.device, dtype: torch.dtype) -> None:
        manifest = folder.manifest
        config = BertConfig.parse(folder.read(CONFIG))
        if manifest.dimensions != config.hidden_size or manifest.max_tokens > config.max_position_embeddings:
            raise ConfigError("manifest and config.json contradict each other")
        weights = load_weights(folder.read(WEIGHTS), config, stored=manifest.dtype, device=device, dtype=dtype)
        self.name = manifest.name
        self.digest = folder.digest
        self.dimensions = manifest.dimensions
        self.max_tokens = manifest.max_tokens
        self._encoder = BertEncoder(config, weights)
        self._tokenizer = TextTokenizer(
            folder.read(TOKENIZER), max_tokens=manifest.max_tokens, vocabulary=config.vocab_size
        )
        self._warm_up()

    def answer(self, items: int, parameters: Mapping[str, object]) -> Answer:
        """See `worker.models.base.Model.answer`."""
        ensure_no_parameters(parameters)
        return EmbeddingAnswer(items, self.dimensions)

    def tokenise(self, inputs: Sequence[object]) -> list[Tokens | ModelError]:
        """See `worker.models.base.Model.tokenise`."""
        return self._tokenizer.tokenise(inputs)

    def forward(self, rows: Sequence[Ids]) -> Embeddings:
        """See `worker.models.base.Model.forward`."""
        try:
            return self._encoder.embed(rows)
        except torch.OutOfMemoryError as error:
            raise DeviceOutOfMemory("token batch does not fit the device") from error
        except RuntimeError as error:
            # torch has no class of its own for the allocator of the CPU.
            if "DefaultCPUAllocator" in str(error):
                raise DeviceOutOfMemory("token batch does not fit the memory") from error
            raise

    def _warm_up(self) -> None:
        """Pay for lazy initialisation before the first tenant does, and prove that the weights give numbers."""
        longest = np.zeros(self.max_tokens, dtype=np.int32)
        if not np.isfinite(self.forward([longest, longest[:1]])).all():
            raise ConfigError("model does not compute finite numbers")
