"""What an engine and its tokeniser processes say to each other over a socket pair. Integers are little-endian.

    recipes   u32 count, then for each: u32 max_tokens, u32 vocabulary, u32 length, bytes of tokenizer.json
    request   u32 recipe, u32 count, u32 length × count, texts as UTF-8
    answer    u32 count, i32 tokens × count, u8 is_cut × count, i32 ids; tokens below 0: −1 − place of a code in CODES

Both ends are of one version and one user; lengths are capped all the same before anything is allocated. Every buffer
that held a text or ids is zeroed by whoever made it. A closed connection reads as EOFError.

May import: the standard library, numpy, mrgc.errors, worker.models. Called by worker.engine.tokeniser_pool and
worker.engine.tokeniser_process.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from mrgc.errors import BY_CODE, FormatError, ModelError, from_code
from worker.models.base import Tokens
from worker.models.tokenizer import Recipe

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

#: Codes of the errors that one input can have.
CODES: Final = sorted(code for code, error in BY_CODE.items() if issubclass(error, ModelError))
#: Most texts of one request, and most of their bytes: what a job batch can hold.
MAX_TEXTS: Final = 1 << 24
MAX_BYTES: Final = 1 << 27
_MAX_DEFINITION_BYTES: Final = 1 << 26
_U32: Final = struct.Struct("<I")
_REQUEST: Final = struct.Struct("<II")
_RECIPE: Final = struct.Struct("<III")


class Request(NamedTuple):
    """Texts for one tokeniser."""

    #: Index among the recipes.
    recipe: int
    texts: list[str]

    def __repr__(self) -> str:
        return f"Request(recipe={self.recipe}, {len(self.texts)} texts)"


def send_recipes(sock: socket.socket, recipes: Sequence[Recipe]) -> None:
    """Send what tokenisers are made of; first message of the engine, not secret."""
    parts = [_U32.pack(len(recipes))]
    for recipe in recipes:
        parts += [_RECIPE.pack(recipe.max_tokens, recipe.vocabulary, len(recipe.definition)), recipe.definition]
    sock.sendall(b"".join(parts))


def receive_recipes(sock: socket.socket) -> list[Recipe]:
    """Receive what tokenisers are made of."""
    recipes = []
    for _ in range(_U32.unpack(_read(sock, _U32.size))[0]):
        max_tokens, vocabulary, length = _RECIPE.unpack(_read(sock, _RECIPE.size))
        _ensure(length <= _MAX_DEFINITION_BYTES)
        recipes.append(Recipe(bytes(_read(sock, length)), max_tokens, vocabulary))
    return recipes


def send_request(sock: socket.socket, recipe: int, texts: Sequence[bytes]) -> None:
    """Send texts in UTF-8 to be tokenised."""
    lengths = np.array([len(text) for text in texts], dtype="<u4")
    message = bytearray(_REQUEST.pack(recipe, len(texts)) + lengths.tobytes())
    message += b"".join(texts)
    _send_and_zero(sock, message)


def receive_request(sock: socket.socket) -> Request:
    """Receive texts to be tokenised."""
    recipe, count = _REQUEST.unpack(_read(sock, _REQUEST.size))
    _ensure(count <= MAX_TEXTS)
    lengths = np.frombuffer(_read(sock, 4 * count), dtype="<u4").tolist()
    _ensure(sum(lengths) <= MAX_BYTES)
    data = _read(sock, sum(lengths))
    texts, start = [], 0
    for length in lengths:
        texts.append(str(memoryview(data)[start : start + length], "utf-8"))
        start += length
    data[:] = bytes(len(data))
    return Request(recipe, texts)


def send_answer(sock: socket.socket, outcomes: Sequence[Tokens | ModelError]) -> None:
    """Send one outcome per text, in order, and zero their ids."""
    tokens = np.array([_tokens(outcome) for outcome in outcomes], dtype="<i4")
    is_cut = np.array([isinstance(outcome, Tokens) and outcome.is_cut for outcome in outcomes], dtype="u1")
    message = bytearray(_U32.pack(len(outcomes)) + tokens.tobytes() + is_cut.tobytes())
    for outcome in outcomes:
        if isinstance(outcome, Tokens):
            message += outcome.ids.astype("<i4", copy=False).data.cast("B")
            outcome.ids.fill(0)
    _send_and_zero(sock, message)


def receive_answer(sock: socket.socket, *, count: int, max_tokens: int) -> list[Tokens | ModelError]:
    """Receive one outcome per text.

    Args:
        sock: our end.
        count: how many were asked for.
        max_tokens: of the recipe.

    Raises:
        FormatError: the answer is to something else.
        OSError, EOFError: the tokeniser is gone.
    """
    _ensure(_U32.unpack(_read(sock, _U32.size))[0] == count)
    tokens = np.frombuffer(_read(sock, 4 * count), dtype="<i4").tolist()
    is_cut = _read(sock, count)
    _ensure(all(-len(CODES) <= each <= max_tokens for each in tokens))
    data = _read(sock, 4 * sum(each for each in tokens if each > 0))
    ids = np.frombuffer(data, dtype="<i4")
    outcomes: list[Tokens | ModelError] = []
    start = 0
    for each, cut in zip(tokens, is_cut, strict=True):
        if each < 0:
            error = from_code(CODES[-1 - each])
            outcomes.append(error if isinstance(error, ModelError) else ModelError())
        else:
            # A copy: rows are zeroed one by one, long after this buffer.
            outcomes.append(Tokens(ids[start : start + each].astype(np.int32), is_cut=bool(cut)))
            start += each
    data[:] = bytes(len(data))
    return outcomes


def _tokens(outcome: Tokens | ModelError) -> int:
    return len(outcome.ids) if isinstance(outcome, Tokens) else -1 - CODES.index(outcome.code)


def _send_and_zero(sock: socket.socket, message: bytearray) -> None:
    try:
        sock.sendall(message)
    finally:
        message[:] = bytes(len(message))


def _read(sock: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        received = sock.recv_into(view)
        if not received:
            raise EOFError("connection closed")
        view = view[received:]
    return data


def _ensure(holds: object) -> None:
    if not holds:
        raise FormatError("not a message of a tokeniser")
