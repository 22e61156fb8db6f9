"""What the suite did to the stacks, and what became of the jobs: the table at its end."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """Counts by source; `add` is safe to call from several threads."""

    kills: dict[str, Counter[str]] = field(default_factory=dict)
    #: jobs, served, dead-lettered, lost, doubled.
    jobs: dict[str, Counter[str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def kill(self, source: str, part: str) -> None:
        """Count one SIGKILL."""
        with self._lock:
            self.kills.setdefault(source, Counter())[part] += 1

    def settle(self, source: str, **counts: int) -> None:
        """Count jobs by what became of them."""
        with self._lock:
            self.jobs.setdefault(source, Counter()).update(counts)

    def lines(self) -> Iterator[str]:
        """Write the table."""
        columns = ("jobs", "served", "dead_lettered", "lost", "doubled")
        yield f"{'source':8}" + "".join(f"{name:>15}" for name in columns) + f"{'SIGKILLs':>10}"
        for source in sorted(self.jobs):
            counts = "".join(f"{self.jobs[source][name]:>15}" for name in columns)
            killed = self.kills.get(source, Counter())
            yield f"{source:8}{counts}{killed.total():>10}"
            if killed:
                yield "        of them " + ", ".join(f"{part} {count}" for part, count in sorted(killed.items()))
