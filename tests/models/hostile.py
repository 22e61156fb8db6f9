"""How the tests spoil a copy of the tiny model's folder: each change leaves one thing wrong and the hashes right."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Final

from worker.models.folder import survey
from worker.models.manifest import MANIFEST


class Program:
    """An object whose pickle runs a command when it is read."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._trace),)


def read_all(folder: Path) -> None:
    """Survey a folder and read every file of it, as the engine does before it serves it."""
    found = survey(folder)
    for name in found.sizes:
        found.read(name)
    found.verify()


def put(folder: Path, name: str, content: bytes) -> None:
    """Write a file and list it with its true hash, so that only its kind or its meaning can be wrong."""
    (folder / name).write_bytes(content)
    relist(folder, **{name: hashlib.sha256(content).hexdigest()})


def relist(folder: Path, **files: str) -> None:
    """Name files in the manifest, with these hashes."""
    fields = json.loads((folder / MANIFEST).read_bytes())
    fields["files"] |= files
    (folder / MANIFEST).write_text(json.dumps(fields))


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """Lay out a safetensors file from a header, given as JSON text or as what becomes it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


#: One tensor of four bytes.
SOUND: Final = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
