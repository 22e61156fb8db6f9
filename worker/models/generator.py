"""Text generation through vLLM, an optional extra: imported when a manifest's task asks for it, never before.

vLLM opens the folder by itself, by its path, so every hash is compared first, and what it can be told about where to
look is fixed: these files, safetensors, no code of theirs, no network. Its API is that of its documentation, "Offline
Inference": LLM.generate with one SamplingParams for each prompt.

Not yet run: no machine with vLLM and a GPU was at hand. Called by worker.models.registry. May import: the standard
library, numpy, tokenizers, torch, vllm, mrgc, worker.models.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from tokenizers import Tokenizer

from mrgc.errors import ConfigError, FormatError, InputInvalid, ModelError
from mrgc.wire import strict_json
from worker.models.base import Tokens
from worker.models.device import out_of_memory_as_ours
from worker.models.generation import MAX_NEW_TOKENS, PREFIX, Sampling, TextAnswer
from worker.models.manifest import CONFIG, TOKENIZER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from worker.models.base import Answer, Ids, Output
    from worker.models.folder import ModelFolder

#: What vLLM keeps of the texts that it works on, beside the weights; part of the memory budget.
KV_CACHE_BYTES: Final = 4 << 30
#: Decoders that vLLM computes from safetensors alone.
ARCHITECTURES: Final = frozenset(
    {
        "GemmaForCausalLM",
        "Gemma2ForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Phi3ForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
    }
)
#: Read by vLLM and by what it imports, when it is imported: no download, no report of use, no process of its own, which
#: would be without the engine's hardening.
_ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


class TextGenerator:
    """A decoder that continues texts.

    Args:
        folder: surveyed.
        device: the first CUDA device that the process sees.
        dtype: what the decoder computes in.

    Raises:
        ConfigError: the extra is not installed, the device is another, or the folder is not that of a decoder served
            here.
    """

    dimensions = 0
    vocabulary = 0  # its rows begin with parameters, so there are no pre-tokenised inputs

    def __init__(self, folder: ModelFolder, *, device: torch.device, dtype: torch.dtype) -> None:
        if find_spec("vllm") is None:
            raise ConfigError("its task generate needs the extra vllm: pip install 'mrgc[vllm]'")
        if device.type != "cuda" or device.index:
            raise ConfigError("its task generate needs MRGC_DEVICE=cuda:0; CUDA_VISIBLE_DEVICES chooses which that is")
        self.name, self.digest = folder.manifest.name, folder.digest
        self.max_tokens = folder.manifest.max_tokens
        ensure_served(folder.read(CONFIG), max_tokens=self.max_tokens)
        self._tokenizer = read_tokenizer(folder.read(TOKENIZER))
        folder.verify()
        self._llm, self._sampling_params = _start(folder, dtype, longest=self.max_tokens + MAX_NEW_TOKENS)
        self.forward([np.ones(PREFIX + 1, dtype=np.int32)])

    def answer(self, items: int, parameters: Mapping[str, object]) -> Answer:
        """See `worker.models.base.Model.answer`."""
        return TextAnswer(items, Sampling.of(parameters))

    def tokenise(self, inputs: Sequence[object]) -> list[Tokens | ModelError]:
        """See `worker.models.base.Model.tokenise`; rows begin with room for their parameters."""
        return [prompt(text, self._tokenizer, max_tokens=self.max_tokens) for text in inputs]

    def forward(self, rows: Sequence[Ids]) -> list[Output]:
        """See `worker.models.base.Model.forward`: UTF-8 of one text per row, uint8 (bytes,).

        vLLM's kernels do not promise the same bits for any batch mates.
        """
        prompts = [{"prompt_token_ids": row[PREFIX:].tolist()} for row in rows]
        wishes = [self._sampling_params(**sampling_fields(Sampling.of_row(row))) for row in rows]
        with out_of_memory_as_ours():
            found = self._llm.generate(prompts, wishes, use_tqdm=False)
        texts = (each.outputs[0].text.encode(errors="replace") for each in found)
        return [np.frombuffer(bytearray(text), dtype=np.uint8) for text in texts]


def _start(folder: ModelFolder, dtype: torch.dtype, *, longest: int) -> tuple[Any, Any]:
    os.environ.update(_ENVIRONMENT)
    # Here and not above: it takes seconds and gigabytes, and brings network clients into a process that has none.
    import vllm  # noqa: PLC0415

    llm = vllm.LLM(
        model=str(folder.path),
        tokenizer=str(folder.path),
        trust_remote_code=False,
        load_format="safetensors",
        dtype=str(dtype).removeprefix("torch."),
        max_model_len=longest,
        kv_cache_memory_bytes=KV_CACHE_BYTES,
        # Its speed would tell one tenant whether another had sent the same beginning.
        enable_prefix_caching=False,
        seed=0,
    )
    return llm, vllm.SamplingParams


def sampling_fields(sampling: Sampling) -> dict[str, Any]:
    """Return the arguments of vLLM's SamplingParams."""
    return {
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": sampling.seed,
    }


def ensure_served(data: bytes, *, max_tokens: int) -> None:
    """Raise ConfigError unless this config.json is that of a decoder served here, with room for what it generates."""
    try:
        fields = strict_json.parse(data, max_values=4_096)
    except FormatError as error:
        raise ConfigError("config.json is not strict json") from error
    named = fields.get("architectures") if type(fields) is dict else None
    if type(named) is not list or len(named) != 1 or named[0] not in ARCHITECTURES:
        raise ConfigError(f"config.json is not that of a decoder served here: {', '.join(sorted(ARCHITECTURES))}")
    longest = fields.get("max_position_embeddings")
    if type(longest) is not int or max_tokens + MAX_NEW_TOKENS > longest:
        raise ConfigError(f"max_tokens leaves no room for {MAX_NEW_TOKENS} new tokens in max_position_embeddings")


def read_tokenizer(definition: bytes) -> Tokenizer:
    """Read tokenizer.json; raises ConfigError if it is none."""
    try:
        tokenizer = Tokenizer.from_buffer(definition)
    except ValueError as error:
        raise ConfigError("tokenizer.json is not a tokeniser definition") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def prompt(text: object, tokenizer: Tokenizer, *, max_tokens: int) -> Tokens | ModelError:
    """Tokenise one input, behind room for its job's parameters."""
    if not isinstance(text, str) or not text:
        return InputInvalid("input is not text, or is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        return InputInvalid("input has no utf-8 form")
    ids = tokenizer.encode(text).ids
    return Tokens(np.array([*[0] * PREFIX, *ids[:max_tokens]], dtype=np.int32), is_cut=len(ids) > max_tokens)
