"""Real input for the demo and the benchmarks: the docstrings of Python's own standard library.

Several thousand English texts of 5 to some hundred tokens, on every machine, under the licence of Python, with
nothing to download. May import: the standard library. Called by infra.demo and bench.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_SKIPPED: Final = {"__pycache__", "idlelib", "lib2to3", "site-packages", "test", "tests", "turtledemo"}


def texts() -> list[str]:
    """Return the distinct docstrings of the standard library's modules, classes and functions.

    The order is the same at every call on one machine: by path, then by place in the file.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, None] = {}
    for path in sorted(root.rglob("*.py")):
        if not _SKIPPED.intersection(path.relative_to(root).parts):
            found.update(dict.fromkeys(_docstrings(path)))
    return list(found)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            # A few old modules have invalid escapes in literals; their docstrings are fine.
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text
