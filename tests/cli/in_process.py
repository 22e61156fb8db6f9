"""The command in the test's own process: main() with arguments and standard streams, nothing replaced below."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from typing import Any, NamedTuple

import pytest

from mrgc.cli import main


class Done(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def fields(self) -> dict[str, Any]:
        """The one object that --json prints."""
        (line,) = self.out.splitlines()
        found: dict[str, Any] = json.loads(line)
        return found


def mrgc(*arguments: str, stdin: bytes = b"") -> Done:
    """Run `mrgc` to its end."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["mrgc", *arguments])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    return Done(code, out.getvalue(), err.getvalue())
