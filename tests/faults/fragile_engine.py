"""The engine with a model that one text kills: `python -m tests.faults.fragile_engine`, in place of worker.engine.

The composition is the product's own; the models are the folder's, each behind a `Model` that looks at the tokens of
DEADLY_TEXT before it runs a batch. Death comes in the forward pass, as a fault of a device does, with batch mates.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mrgc.errors import ModelError
    from worker.models.base import Ids, Model, Outputs, Tokens

#: No other text of the suite has these tokens.
DEADLY_TEXT: Final = "return return return file file file"


class FragileModel:
    """Dies of DEADLY_TEXT.

    Args:
        model: does the work.
    """

    def __init__(self, model: Model) -> None:
        self.name, self.digest = model.name, model.digest
        self.dimensions, self.max_tokens = model.dimensions, model.max_tokens
        self.vocabulary, self.answer = model.vocabulary, model.answer
        self._model = model
        (deadly,) = model.tokenise([DEADLY_TEXT])
        assert not isinstance(deadly, Exception)
        self._deadly = deadly.ids.tolist()

    def tokenise(self, inputs: Sequence[object]) -> list[Tokens | ModelError]:
        """See `worker.models.base.Model.tokenise`."""
        return self._model.tokenise(inputs)

    def forward(self, rows: Sequence[Ids]) -> Outputs:
        """See `worker.models.base.Model.forward`."""
        if any(row.tolist() == self._deadly for row in rows):
            os.kill(os.getpid(), signal.SIGKILL)
        return self._model.forward(rows)


def main() -> int:
    """Run the engine as worker.engine.__main__ does, with fragile models."""
    from worker.engine import hardening  # noqa: PLC0415  hardening comes before torch, as in the product

    hardening.use_erasing_allocator(os.environ)
    hardening.forbid_dumps()
    from worker.engine import process  # noqa: PLC0415
    from worker.models import registry  # noqa: PLC0415

    def load(folder: Path, **settings: Any) -> registry.Registry:
        return registry.Registry(map(FragileModel, registry.load(folder, **settings)))

    return process.run(os.environ, load=load)


if __name__ == "__main__":
    sys.exit(main())
