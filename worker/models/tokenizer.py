"""Text to token ids with a BERT (WordPiece) or RoBERTa (byte-level BPE) tokeniser, one outcome per input.

Called by `worker.models.embedder` and `worker.engine.tokeniser_pool`. Truncation is not judged here: an over-long input
comes back cut and marked, and the engine decides by the job's `truncate` (docs/spec.md §3).

May import: the standard library, numpy, tokenizers, mrgc.errors.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple, TypeGuard

import numpy as np
from tokenizers import Encoding, Tokenizer
from tokenizers.models import BPE, WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel

from mrgc.errors import ConfigError, InputInvalid, ModelError
from worker.models.base import Tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

#: First guess at how much of a long text decides it. English WordPiece tokens are 4 to 5 characters on average.
_PROBE_CHARS_PER_TOKEN: Final = 8
#: White space that begins a run of it: words begin there for both kinds, whatever follows.
_GAP: Final = re.compile(r"(?<=\S)[ \t\r\n]")
#: Tokenisers whose words never span such a gap, by their model and what cuts texts into words for it.
_KINDS: Final = ((WordPiece, BertPreTokenizer), (BPE, ByteLevel))


class Recipe(NamedTuple):
    """What a tokeniser is made of; enough to make the same one in another process."""

    #: Bytes of tokenizer.json; its own truncation and padding are switched off.
    definition: bytes
    #: Most ids of one input, special tokens included.
    max_tokens: int
    #: Rows of the model's embedding table; every id is below it.
    vocabulary: int


class TextTokenizer:
    """A tokeniser of one model.

    Args:
        definition, max_tokens, vocabulary: see `Recipe`.
        with_offsets: tell where in its text each token is, which costs a quarter more.

    Raises:
        ConfigError: not a definition of such a tokeniser, or one for another vocabulary.
    """

    def __init__(self, definition: bytes, *, max_tokens: int, vocabulary: int, with_offsets: bool = False) -> None:
        try:
            tokenizer = Tokenizer.from_buffer(definition)
        except ValueError as error:
            raise ConfigError("tokenizer.json is not a tokeniser definition") from error
        # The probe below cuts texts at gaps, which is exact only where words never span one.
        if not any(isinstance(tokenizer.model, of) and isinstance(tokenizer.pre_tokenizer, by) for of, by in _KINDS):
            raise ConfigError("tokenizer.json is not a bert or roberta tokeniser")
        if max(tokenizer.get_vocab(with_added_tokens=True).values()) >= vocabulary:
            raise ConfigError("tokenizer.json has ids beyond the model's vocabulary")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        #: None where it takes more than that.
        self.recipe = None if with_offsets else Recipe(definition, max_tokens, vocabulary)
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._with_offsets = with_offsets

    def tokenise(self, inputs: Sequence[object]) -> list[Tokens | ModelError]:
        """Tokenise inputs of any type and length; see `worker.models.base.Model.tokenise`."""
        outcomes: list[Tokens | ModelError] = [InputInvalid("input is not text")] * len(inputs)
        texts = {index: value for index, value in enumerate(inputs) if _is_text(value)}
        for index, tokens in zip(texts, self._encode(list(texts.values())), strict=True):
            outcomes[index] = tokens
        return outcomes

    def _encode(self, texts: list[str]) -> list[Tokens]:
        probe_chars = self._max_tokens * _PROBE_CHARS_PER_TOKEN
        probes = [_head(text, probe_chars) for text in texts]
        # The fast one does not say where its tokens are.
        encode = self._tokenizer.encode_batch if self._with_offsets else self._tokenizer.encode_batch_fast
        tokens = [self._cut(encoding) for encoding in encode(probes)]
        for index, (text, probe) in enumerate(zip(texts, probes, strict=True)):
            if len(probe) < len(text) and not tokens[index].is_cut:
                tokens[index] = self._encode_long(text, probe_chars)
        return tokens

    def _encode_long(self, text: str, probe_chars: int) -> Tokens:
        """Double the head until it holds more tokens than allowed, or is the whole text.

        The head ends before white space, so its tokens are the first tokens of the text. A megabyte of text then
        costs what its first few kilobytes cost, unless it is truly short in tokens.
        """
        while True:
            probe_chars *= 2
            head = _head(text, probe_chars)
            tokens = self._cut(self._tokenizer.encode(head))
            if tokens.is_cut or len(head) == len(text):
                return tokens

    def _cut(self, encoding: Encoding) -> Tokens:
        ids = np.array(encoding.ids, dtype=np.int32)
        is_cut = len(ids) > self._max_tokens
        # The last id closes the sequence ([SEP]); truncation keeps it, as the reference tokeniser does.
        kept = np.r_[: self._max_tokens - 1, -1] if is_cut else slice(None)
        offsets = np.array(encoding.offsets, dtype=np.uint32)[kept] if self._with_offsets else None
        tokens = Tokens(ids[kept], is_cut, offsets)
        if is_cut:
            # numpy keeps small arrays for the next one as they are, whatever the allocator below it overwrites.
            ids.fill(0)
        return tokens


def _head(text: str, chars: int) -> str:
    if len(text) <= chars:
        return text
    gap = _GAP.search(text, chars)
    return text if gap is None else text[: gap.start()]


def utf8(value: object) -> bytes | None:
    """Return a text's bytes; None for what is no text, or has no UTF-8 form because of a lone surrogate."""
    if not isinstance(value, str):
        return None
    try:
        return value.encode()
    except UnicodeEncodeError:
        return None


def _is_text(value: object) -> TypeGuard[str]:
    return utf8(value) is not None
