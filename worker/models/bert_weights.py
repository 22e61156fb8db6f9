"""Weights of a BERT-family encoder and its head: configuration, expected shapes, loading.

Nothing is allocated for a tensor before its shape is compared with what the configuration implies, and the
configuration itself is bounded. Formats other than safetensors are not read at all.

May import: the standard library, torch, safetensors, mrgc.errors, mrgc.wire, worker.models.manifest. Called by
worker.models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mrgc.errors import ConfigError, FormatError
from mrgc.wire import strict_json
from worker.models.manifest import CLASSIFY, CLASSIFY_TOKENS, EMBED

ARCHITECTURE: Final = "BertModel"


class Architecture(NamedTuple):
    """What `architectures` in a config.json says of the checkpoint beside it."""

    #: Task that a manifest must name.
    task: str
    #: Before the names of the encoder's tensors.
    prefix: str
    #: Modules of the head, all of which but the last are followed by tanh and keep the width.
    head: tuple[str, ...] = ()
    #: RoBERTa counts positions from behind that of the padding token, which takes its own (`padding_idx`).
    counts_behind_padding: bool = False


ARCHITECTURES: Final = {
    ARCHITECTURE: Architecture(EMBED, ""),
    "BertForSequenceClassification": Architecture(CLASSIFY, "bert.", ("bert.pooler.dense", "classifier")),
    "BertForTokenClassification": Architecture(CLASSIFY_TOKENS, "bert.", ("classifier",)),
    "RobertaModel": Architecture(EMBED, "", (), True),
    "RobertaForSequenceClassification": Architecture(
        CLASSIFY, "roberta.", ("classifier.dense", "classifier.out_proj"), True
    ),
    "RobertaForTokenClassification": Architecture(CLASSIFY_TOKENS, "roberta.", ("classifier",), True),
}
#: Tensors that checkpoints carry, behind the encoder's prefix, and not every head has a use for.
_UNUSED: Final = frozenset({"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"})
_DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

#: Bounds of the configuration, above every published BERT-family encoder.
_BOUNDS: Final = {
    "hidden_size": 8_192,
    "num_hidden_layers": 128,
    "num_attention_heads": 256,
    "intermediate_size": 65_536,
    "vocab_size": 1_048_576,
    "max_position_embeddings": 65_536,
    "type_vocab_size": 64,
}


@dataclass(frozen=True, slots=True)
class BertConfig:
    """The part of config.json that decides shapes and arithmetic."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    architecture: Architecture
    #: Row of the position embeddings that a text's first token has.
    first_position: int
    #: Numbers that the head gives; 0 without a head.
    labels: int
    #: Whether each label is judged by itself.
    multi_label: bool

    @classmethod
    def parse(cls, data: bytes, *, labels: int = 0) -> BertConfig:
        """Parse a config.json.

        Args:
            data: its bytes.
            labels: how many the manifest names.

        Raises:
            ConfigError: another architecture, or a value outside what this encoder computes.
        """
        try:
            fields = strict_json.parse(data, max_values=4_096)
        except FormatError as error:
            raise ConfigError("config.json is not strict json") from error
        _ensure(type(fields) is dict, "form")
        architecture = _architecture(fields.get("architectures"))
        problem = fields.get("problem_type")
        _ensure(problem in (None, "single_label_classification", "multi_label_classification"), "problem_type")
        _ensure(fields.get("hidden_act") == "gelu", "hidden_act")
        _ensure(fields.get("position_embedding_type", "absolute") == "absolute", "position_embedding_type")
        sizes = {name: fields.get(name) for name in _BOUNDS}
        for name, size in sizes.items():
            _ensure(type(size) is int and 1 <= size <= _BOUNDS[name], name)
        eps = fields.get("layer_norm_eps")
        _ensure(type(eps) is float and 0 < eps < 1, "layer_norm_eps")
        padding = fields.get("pad_token_id") if architecture.counts_behind_padding else -1
        _ensure(type(padding) is int and -1 <= padding < sizes["max_position_embeddings"] - 1, "pad_token_id")
        config = cls(
            **sizes,
            layer_norm_eps=eps,
            architecture=architecture,
            first_position=padding + 1,
            labels=labels,
            multi_label=problem == "multi_label_classification",
        )
        _ensure(config.hidden_size % config.num_attention_heads == 0, "num_attention_heads")
        return config

    @property
    def longest(self) -> int:
        """Most tokens of one text."""
        return self.max_position_embeddings - self.first_position

    def unused(self) -> frozenset[str]:
        """Return the names of tensors that the checkpoint may hold beside those of `shapes`."""
        return frozenset(f"{self.architecture.prefix}{name}" for name in _UNUSED) - self.shapes().keys()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that encoder and head need, by its name in the checkpoint."""
        width, inner, prefix = self.hidden_size, self.intermediate_size, self.architecture.prefix
        shapes: dict[str, tuple[int, ...]] = {
            f"{prefix}embeddings.word_embeddings.weight": (self.vocab_size, width),
            f"{prefix}embeddings.position_embeddings.weight": (self.max_position_embeddings, width),
            f"{prefix}embeddings.token_type_embeddings.weight": (self.type_vocab_size, width),
        }
        modules: dict[str, tuple[int, ...]] = {f"{prefix}embeddings.LayerNorm": (width,)}
        modules |= dict.fromkeys(self.architecture.head[:-1], (width, width))
        modules |= dict.fromkeys(self.architecture.head[-1:], (self.labels, width))
        for index in range(self.num_hidden_layers):
            layer = f"{prefix}encoder.layer.{index}."
            modules |= {f"{layer}attention.self.{part}": (width, width) for part in ("query", "key", "value")}
            modules |= {f"{layer}attention.output.dense": (width, width), f"{layer}output.dense": (width, inner)}
            modules |= {f"{layer}intermediate.dense": (inner, width)}
            modules |= {f"{layer}attention.output.LayerNorm": (width,), f"{layer}output.LayerNorm": (width,)}
        shapes |= {f"{module}.weight": shape for module, shape in modules.items()}
        shapes |= {f"{module}.bias": shape[:1] for module, shape in modules.items()}
        return shapes


class Affine(NamedTuple):
    """Weight and bias of a linear layer or a layer norm."""

    weight: Tensor
    bias: Tensor


class Layer(NamedTuple):
    """Weights of one encoder layer; query, key and value are one linear layer of width 3 × hidden."""

    qkv: Affine
    attention_output: Affine
    attention_norm: Affine
    intermediate: Affine
    output: Affine
    output_norm: Affine


class BertWeights(NamedTuple):
    """Weights of the encoder on its device, in its dtype."""

    words: Tensor
    #: Position embeddings from a text's first token on, plus the one token type that a single sequence has.
    positions: Tensor
    embedding_norm: Affine
    layers: list[Layer]
    #: Linear layers of the head; all but the last are followed by tanh.
    head: list[Affine]


def load_weights(
    data: bytes, config: BertConfig, *, stored: str, device: torch.device, dtype: torch.dtype
) -> BertWeights:
    """Load a safetensors file that holds exactly the tensors of `config`.

    Args:
        data: bytes of model.safetensors, their hash already compared.
        config: decides names and shapes.
        stored: dtype of the file, from the manifest.
        device: where the encoder runs.
        dtype: what the encoder computes in.

    Raises:
        ConfigError: not safetensors, or a tensor is missing, unknown, misshapen or of another dtype.
    """
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ConfigError("model.safetensors is not a safetensors file") from error
    shapes = config.shapes()
    if tensors.keys() - config.unused() != shapes.keys():
        raise ConfigError("model.safetensors does not hold exactly the tensors of its configuration")
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape or tensors[name].dtype != _DTYPES[stored]:
            raise ConfigError(f"tensor {name} differs from its configuration")
    return _Loader(tensors, device, dtype).weights(config)


class _Loader:
    def __init__(self, tensors: dict[str, Tensor], device: torch.device, dtype: torch.dtype) -> None:
        self._tensors = tensors
        self._device = device
        self._dtype = dtype

    def weights(self, config: BertConfig) -> BertWeights:
        prefix = config.architecture.prefix
        token_type = self._tensor(f"{prefix}embeddings.token_type_embeddings.weight")[0]
        positions = self._tensor(f"{prefix}embeddings.position_embeddings.weight")
        return BertWeights(
            self._tensor(f"{prefix}embeddings.word_embeddings.weight"),
            positions[config.first_position :] + token_type,
            self._affine(f"{prefix}embeddings.LayerNorm"),
            [self._layer(f"{prefix}encoder.layer.{index}.") for index in range(config.num_hidden_layers)],
            [self._affine(module) for module in config.architecture.head],
        )

    def _layer(self, prefix: str) -> Layer:
        attention = [self._affine(f"{prefix}attention.self.{part}") for part in ("query", "key", "value")]
        return Layer(
            Affine(torch.cat([part.weight for part in attention]), torch.cat([part.bias for part in attention])),
            self._affine(f"{prefix}attention.output.dense"),
            self._affine(f"{prefix}attention.output.LayerNorm"),
            self._affine(f"{prefix}intermediate.dense"),
            self._affine(f"{prefix}output.dense"),
            self._affine(f"{prefix}output.LayerNorm"),
        )

    def _affine(self, module: str) -> Affine:
        return Affine(self._tensor(f"{module}.weight"), self._tensor(f"{module}.bias"))

    def _tensor(self, name: str) -> Tensor:
        # A copy also where dtype and device agree: the file's bytes must not stay alive behind the views.
        return self._tensors[name].to(self._device, self._dtype, copy=True)


def _architecture(names: object) -> Architecture:
    _ensure(type(names) is list and len(names) == 1 and type(names[0]) is str, "architectures")
    architecture = ARCHITECTURES.get(names[0])  # type: ignore[index]  # judged in the line above
    if architecture is None:
        raise ConfigError("config.json is not that of an encoder served here: architectures")
    return architecture


def _ensure(holds: Any, what: str) -> None:
    if not holds:
        raise ConfigError(f"config.json is not that of an encoder served here: {what}")
