"""Inputs that a tenant has tokenised itself: byte strings of little-endian ids (docs/spec.md §3).

Called by worker.engine.opening. May import: the standard library, numpy, mrgc.errors, worker.models.base.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from mrgc.errors import InputInvalid, ModelError
from worker.models.base import Tokens

if TYPE_CHECKING:
    from worker.models.base import Model

#: Number types by the value of the parameter `ids`.
DTYPES: Final[Mapping[str, np.dtype[np.unsignedinteger]]] = {"u16": np.dtype("<u2"), "u32": np.dtype("<u4")}


def read_ids(value: object, kind: str, model: Model) -> Tokens | ModelError:
    """Read one input.

    Args:
        value: what stands among the inputs.
        kind: "u16" or "u32".
        model: decides which ids there are and how many it takes.

    Returns:
        The ids, cut to the model's limit as a text's would be, or the InputInvalid of an input that is none.
    """
    dtype = DTYPES[kind]
    if type(value) is not bytes or not value or len(value) % dtype.itemsize:
        return InputInvalid("input is not a byte string of whole token ids")
    ids = np.frombuffer(value, dtype=dtype)
    # The whole of it, not only what is kept: an id that is none shows that another tokeniser made them.
    if int(ids.max()) >= model.vocabulary:
        return InputInvalid("input has a token id that the model's vocabulary has not")
    if len(ids) > model.max_tokens:
        return Tokens(np.append(ids[: model.max_tokens - 1], ids[-1:]).astype(np.int32), is_cut=True)
    return Tokens(ids.astype(np.int32), is_cut=False)
