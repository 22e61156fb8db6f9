"""Text to ids: the reference tokeniser's ids, an outcome per input, and bounded work for long texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Encoding, Tokenizer

from infra import tiny_model
from infra.tiny_model import Kind
from mrgc.errors import InputInvalid
from worker.models.base import Tokens
from worker.models.manifest import TOKENIZER
from worker.models.tokenizer import TextTokenizer

LIMIT = 12


@pytest.fixture(scope="module")
def definition(tiny_folder: Path) -> bytes:
    """The tiny model's tokenizer.json."""
    return (tiny_folder / tiny_model.NAME / TOKENIZER).read_bytes()


@pytest.fixture(scope="module")
def tokenizer(definition: bytes) -> TextTokenizer:
    """The tokeniser under test, with a limit that short texts reach."""
    return TextTokenizer(definition, max_tokens=LIMIT, vocabulary=1_000)


@pytest.fixture(scope="module")
def reference(definition: bytes) -> Tokenizer:
    """The library's own tokeniser with its own truncation."""
    reference = Tokenizer.from_buffer(definition)
    reference.enable_truncation(LIMIT)
    return reference


def one(tokenizer: TextTokenizer, text: object) -> Tokens:
    """Tokenise one input that must succeed."""
    (outcome,) = tokenizer.tokenise([text])
    assert isinstance(outcome, Tokens)
    return outcome


#: Words, white space of every kind, accents, controls: what could move when a text is cut.
WORDS = st.text(alphabet="ab é\u0301ß\u3000\t\n\r\x00\x1c\x85.中-'", max_size=400)


@given(text=st.one_of(st.text(max_size=60), WORDS, WORDS.map(lambda text: text * 7)))
def test_ids_are_those_of_the_reference_cut_at_the_limit(
    tokenizer: TextTokenizer, reference: Tokenizer, text: str
) -> None:
    """Probing a head of a long text changes no id, whatever the text holds."""
    assert one(tokenizer, text).ids.tolist() == reference.encode(text).ids


@given(text=WORDS.map(lambda text: text * 3))
def test_an_input_is_marked_as_cut_exactly_when_it_is_over_the_limit(
    tokenizer: TextTokenizer, definition: bytes, text: str
) -> None:
    """The mark decides between an answer and input_too_long, so it must not be off by one."""
    whole = Tokenizer.from_buffer(definition).encode(text).ids
    assert one(tokenizer, text).is_cut is (len(whole) > LIMIT)


@pytest.mark.parametrize("value", [None, 1, 1.5, True, [], ["text"], {}, b"bytes", "\ud800", "good \udfff bad"])
def test_what_is_not_text_fails_alone(tokenizer: TextTokenizer, value: object) -> None:
    """Wrong types and lone surrogates are errors of their own; their neighbours are served."""
    before, bad, after = tokenizer.tokenise(["before", value, "after"])
    assert isinstance(bad, InputInvalid)
    assert isinstance(before, Tokens)
    assert isinstance(after, Tokens)


@pytest.mark.parametrize("text", ["", "\x00", "a\x00b", "\ufeff", "\U0010ffff", "🙂" * 3, "[CLS]"])
def test_odd_texts_are_served(tokenizer: TextTokenizer, text: str) -> None:
    """Empty texts, NULs and characters outside the vocabulary are texts."""
    assert 2 <= len(one(tokenizer, text).ids) <= LIMIT


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The tokenizer.json of a tiny RoBERTa."""
    folder = tiny_model.write(tmp_path_factory.mktemp("roberta"), kind=Kind("RobertaModel"))
    return (folder / TOKENIZER).read_bytes()


@given(text=st.one_of(st.text(max_size=60), WORDS, WORDS.map(lambda text: text * 7), st.text(" a\n's1", max_size=300)))
def test_byte_level_ids_are_those_of_the_reference_too(roberta: bytes, text: str) -> None:
    """Words of a byte-level tokeniser begin with the white space before them, and never span a run of it."""
    whole = Tokenizer.from_buffer(roberta)
    tokenizer = TextTokenizer(roberta, max_tokens=LIMIT, vocabulary=1_000, with_offsets=True)
    found, expected = one(tokenizer, text), whole.encode(text)
    assert found.is_cut is (len(expected.ids) > LIMIT)
    kept = [*range(LIMIT - 1), -1] if found.is_cut else range(len(expected.ids))
    assert found.ids.tolist() == [expected.ids[place] for place in kept]
    assert found.offsets is not None
    assert found.offsets.tolist() == [list(expected.offsets[place]) for place in kept]


@given(spaces=st.integers(90, 420))
def test_a_text_is_not_probed_within_a_run_of_white_space(roberta: bytes, spaces: int) -> None:
    """There byte-level words depend on what follows: of two spaces before a word the second is part of it."""
    definition = json.loads(roberta)
    vocabulary, merges = definition["model"]["vocab"], definition["model"]["merges"]
    for half in ("\u0120" * length for length in (1, 2, 4, 8, 16, 32)):
        vocabulary[half * 2] = len(vocabulary)
        merges.append([half, half])
    changed = json.dumps(definition).encode()
    expected = Tokenizer.from_buffer(changed)
    expected.enable_truncation(LIMIT)
    text = "b" + " " * spaces + "b"
    found = one(TextTokenizer(changed, max_tokens=LIMIT, vocabulary=1_000), text)
    assert found.ids.tolist() == expected.encode(text).ids


def test_a_megabyte_without_a_gap_is_judged_in_time(roberta: bytes) -> None:
    """A byte-level tokeniser has to join a million bytes of one word, or of white space, before it knows."""
    tokenizer = TextTokenizer(roberta, max_tokens=LIMIT, vocabulary=1_000)
    for text in ("a" * 1_000_000, " " * 1_000_000, "return" * 150_000):
        assert one(tokenizer, text).is_cut


def test_a_megabyte_of_one_word_is_one_unknown_word(tokenizer: TextTokenizer) -> None:
    """A text without white space cannot be probed and is tokenised whole."""
    assert len(one(tokenizer, "a" * 1_000_000).ids) == 3


def test_a_megabyte_of_white_space_is_empty(tokenizer: TextTokenizer) -> None:
    """Doubling the head ends at the end of the text."""
    assert len(one(tokenizer, " " * 1_000_000).ids) == 2


def test_a_long_text_costs_what_its_head_costs(definition: bytes) -> None:
    """Thirty megabytes of words are judged by their first kilobytes."""
    tokenizer = TextTokenizer(definition, max_tokens=LIMIT, vocabulary=1_000)
    seen: list[int] = []

    class Watched(TextTokenizer):
        def _cut(self, encoding: Encoding) -> Tokens:
            seen.append(len(encoding.ids))
            return super()._cut(encoding)

    watched = Watched(definition, max_tokens=LIMIT, vocabulary=1_000)
    long = "the file " * 3_000_000
    assert one(watched, long).is_cut
    assert max(seen) < 100
    assert one(tokenizer, long[:9_000]).ids.tolist() == one(watched, long).ids.tolist()


def test_no_inputs_are_no_outcomes(tokenizer: TextTokenizer) -> None:
    """An empty list is not a special case."""
    assert tokenizer.tokenise([]) == []
