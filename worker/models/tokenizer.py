"""Text to token ids with a BERT tokeniser (WordPiece), one outcome per input.

Called by `worker.models.embedder`. Truncation is not judged here: an over-long input comes back cut and marked, and
the engine decides by the job's `truncate` (docs/spec.md §3).

May import: the standard library, numpy, tokenizers, mrgc.errors.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeGuard

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer

from mrgc.errors import ConfigError, InputInvalid, ModelError
from worker.models.base import Tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

#: First guess at how much of a long text decides it. English WordPiece tokens are 4 to 5 characters on average.
_PROBE_CHARS_PER_TOKEN: Final = 8
_WHITE_SPACE: Final = re.compile(r"[ \t\r\n]")


class TextTokenizer:
    """A tokeniser of one model.

    Args:
        definition: bytes of tokenizer.json; its own truncation and padding are switched off.
        max_tokens: most ids of one input, special tokens included.
        vocabulary: rows of the model's embedding table; every id is below it.

    Raises:
        ConfigError: not a definition of a BERT tokeniser, or one for another vocabulary.
    """

    def __init__(self, definition: bytes, *, max_tokens: int, vocabulary: int) -> None:
        try:
            tokenizer = Tokenizer.from_buffer(definition)
        except ValueError as error:
            raise ConfigError("tokenizer.json is not a tokeniser definition") from error
        # The probe below cuts texts at white space, which is exact only where words never span white space.
        if not isinstance(tokenizer.model, WordPiece) or not isinstance(tokenizer.pre_tokenizer, BertPreTokenizer):
            raise ConfigError("tokenizer.json is not a bert tokeniser")
        if max(tokenizer.get_vocab(with_added_tokens=True).values()) >= vocabulary:
            raise ConfigError("tokenizer.json has ids beyond the model's vocabulary")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

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
        tokens = [self._cut(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(probes)]
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
            tokens = self._cut(self._tokenizer.encode(head).ids)
            if tokens.is_cut or len(head) == len(text):
                return tokens

    def _cut(self, ids: list[int]) -> Tokens:
        if len(ids) <= self._max_tokens:
            return Tokens(np.array(ids, dtype=np.int32), is_cut=False)
        # The last id closes the sequence ([SEP]); truncation keeps it, as the reference tokeniser does.
        return Tokens(np.array([*ids[: self._max_tokens - 1], ids[-1]], dtype=np.int32), is_cut=True)


def _head(text: str, chars: int) -> str:
    if len(text) <= chars:
        return text
    gap = _WHITE_SPACE.search(text, chars)
    return text if gap is None else text[: gap.start()]


def _is_text(value: object) -> TypeGuard[str]:
    """Tell whether a parsed JSON value is text that has a UTF-8 form: a lone surrogate has none."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
