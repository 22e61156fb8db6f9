"""The one-machine stack with alterations: `python -m tests.faults.launcher FILE up --dir DIR …`.

FILE is JSON: what differs from `python -m infra.local up` with the same arguments. Every part starts through a gate
that waits while DIR/hold/PART exists: the supervisor restarts what dies, and an outage has to last.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

from infra import local
from infra.supervisor import Part

#: The shell becomes the part: same pid, and nothing between it and its signals.
GATE: Final = ("sh", "-c", 'while [ -e "$0" ]; do sleep 0.1; done; exec "$@"')


@dataclass(frozen=True, slots=True)
class Alterations:
    """What differs, by name of a part."""

    #: Folder of the hold files.
    hold: str
    #: Variables that replace or join a part's own.
    env: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    #: Commands that replace a part's own.
    commands: Mapping[str, list[str]] = field(default_factory=dict)
    #: Further parts like the named one, with variables of their own: original → copy → variables.
    copies: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)

    def write(self, file: Path) -> None:
        """Write them for the launcher to read."""
        file.write_text(json.dumps(asdict(self)))

    def apply(self, part: Part) -> Iterable[Part]:
        """Return what runs in place of a part: itself, altered, and its copies."""
        command = tuple(self.commands.get(part.name, part.command))
        altered = replace(part, command=command, env={**part.env, **self.env.get(part.name, {})})
        yield self._gated(altered)
        for name, env in self.copies.get(part.name, {}).items():
            yield self._gated(replace(altered, name=name, env={**altered.env, **env}))

    def _gated(self, part: Part) -> Part:
        return replace(part, command=(*GATE, f"{self.hold}/{part.name}", *part.command))


def main() -> int:
    """Run the altered stack until SIGTERM."""
    file, *arguments = sys.argv[1:]
    return local.main(arguments, adapt=Alterations(**json.loads(Path(file).read_text())).apply)


if __name__ == "__main__":
    sys.exit(main())
