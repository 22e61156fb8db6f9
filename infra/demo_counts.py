"""What the demo counts: objects in the store, calls of the enclave, and the figures of its last line.

May import: the standard library, rich, mrgc. Called by infra.demo and the end-to-end tests.
"""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from mrgc.submitted import SubmittedJob


@dataclass(frozen=True, slots=True)
class Counts:
    """The figures of one run."""

    jobs: int
    texts: int
    #: From the first submit to the last opened result.
    wall_s: float
    #: Of the enclave; the tenants' own are not in it.
    kms_calls: int
    #: Requests to the enclave to open or to seal a job batch.
    round_trips: int
    #: Jobs without a result object.
    lost: int
    #: Jobs with more than one.
    doubled: int
    #: PCR0 that every tenant's key policy demands, hex.
    pcr0: str

    def table(self) -> Table:
        """Lay the figures out for a person."""
        table = Table(show_header=False, title="confidential batch inference, end to end")
        rows = {
            "jobs": f"{self.jobs:,}",
            "texts": f"{self.texts:,}",
            "texts/s": f"{self.texts / self.wall_s:.1f}",
            "KMS calls of the enclave": str(self.kms_calls),
            "enclave round trips": str(self.round_trips),
            "PCR0 that the key policies demand": f"{self.pcr0[:16]}…{self.pcr0[-16:]}",
            "lost / doubled": f"{self.lost} / {self.doubled}",
        }
        for name, value in rows.items():
            table.add_row(name, value)
        return table

    def last_line(self) -> str:
        """Return the line that scripts read."""
        verdict = "ok" if self.lost == self.doubled == 0 else "failed"
        return (
            f"demo: {verdict} jobs={self.jobs} texts={self.texts} texts_per_s={self.texts / self.wall_s:.1f} "
            f"kms_calls={self.kms_calls} lost={self.lost} doubled={self.doubled}"
        )


def count_objects(results: Path, jobs: Iterable[SubmittedJob]) -> dict[str, int]:
    """Count the result objects of each job, whatever request they claim, in a directory store."""
    found = Counter(path.parent.name for path in results.rglob("*.mrgc"))
    return {job.id: found[job.id] for job in jobs}


def scrape(directory: Path) -> dict[str, float]:
    """Read the samples without labels that the enclave agent of a one-machine stack exports."""
    port = json.loads((directory / "ports.json").read_text())["agent"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#") and "{" not in line)
    return {name: float(value) for name, value in pairs}
