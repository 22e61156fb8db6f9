"""Runs one target in a process of its own, and judges how it ended.

Called by `fuzz.__main__` and tests/fuzz. May import: the standard library, fuzz.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from fuzz import registry, tally

#: A target whose resident memory grows by more than this after its warm-up fails. A million inputs that each leave 64
#: bytes behind exceed it; libFuzzer's own corpus stays below.
MAX_GROWTH_BYTES: Final = 48 << 20
#: Longest time for one input. Those of these sizes take well below a millisecond.
INPUT_TIMEOUT_S: Final = 10
_ROOT: Final = Path(__file__).parents[1]
_LOG_TAIL_LINES: Final = 40
_INTERPRETER_NOISE: Final = "INFO: Instrumenting "


@dataclass(frozen=True, slots=True)
class Limits:
    """When a run without a finding ends: at whichever comes first; 0 is no limit."""

    seconds: int
    runs: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one run ended."""

    target: str
    inputs: int
    #: Of these, inputs that the parser accepted.
    accepted: int
    seconds: float
    #: Resident memory after the warm-up and at the end; 0 for a run that was shorter.
    warm_bytes: int
    last_bytes: int
    #: Why the run failed; empty if it did not.
    failure: str
    #: Inputs that the run kept because it failed on them.
    artifacts: tuple[str, ...]
    #: End of the process's output; empty if it did not fail.
    log: str

    def to_json(self) -> dict[str, Any]:
        """Return all fields and the rate."""
        return asdict(self) | {"inputs_per_s": self.inputs_per_s}

    @property
    def inputs_per_s(self) -> int:
        """Inputs per second, start of the process included."""
        return round(self.inputs / self.seconds)


def run(name: str, limits: Limits, *, corpus: Path, crashes: Path, module: str = "") -> Outcome:
    """Fuzz one target until a limit or a finding.

    Args:
        name: of the target, and of its folders.
        limits: when to end.
        corpus: folder of corpora; interesting inputs are added to corpus/NAME.
        crashes: folder of findings; what fails is kept in crashes/NAME.
        module: where the target is, if not in fuzz.targets.

    Returns:
        Figures, and the failure if there was one.
    """
    before = set(_files(crashes / name))
    with tempfile.TemporaryDirectory(prefix="mrgc-fuzz-") as scratch:
        counts, log = Path(scratch) / "tally", Path(scratch) / "log"
        tally.create(counts)
        arguments = _libfuzzer_arguments(name, limits, corpus=corpus, crashes=crashes)
        command = [sys.executable, "-m", "fuzz.child", module or f"fuzz.targets.{name}", str(counts), *arguments]
        start_s = time.monotonic()
        with log.open("wb") as output:
            code = subprocess.run(command, cwd=_ROOT, stdout=output, stderr=output, check=False).returncode
        seconds = time.monotonic() - start_s
        counted = tally.read(counts)
        failure = _failure(code, counted)
        return Outcome(
            name,
            *counted[:2],
            seconds,
            *counted[2:],
            failure=failure,
            artifacts=tuple(str(path) for path in sorted(set(_files(crashes / name)) - before)),
            log=_tail(log) if failure else "",
        )


def _libfuzzer_arguments(name: str, limits: Limits, *, corpus: Path, crashes: Path) -> list[str]:
    for folder in (corpus / name, crashes / name):
        folder.mkdir(parents=True, exist_ok=True)
    seeds = registry.CORPUS / name
    # libFuzzer adds to the first folder and only reads the others.
    folders = [corpus / name] + [seeds] * (seeds.is_dir() and corpus != registry.CORPUS)
    return [
        *map(str, folders),
        f"-artifact_prefix={crashes / name}/",
        f"-timeout={INPUT_TIMEOUT_S}",
        "-rss_limit_mb=0",  # the child limits its address space, and this module judges growth
        *([f"-max_total_time={limits.seconds}"] if limits.seconds else []),
        *([f"-runs={limits.runs}"] if limits.runs else []),
    ]


def _failure(code: int, counted: tally.Tally) -> str:
    if code != 0:
        return f"ended with status {code}"
    growth_bytes = counted.last_bytes - counted.warm_bytes
    if growth_bytes > MAX_GROWTH_BYTES:
        return f"resident memory grew by {growth_bytes >> 20} MiB"
    return ""


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("*") if path.is_file())


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join([line for line in lines if not line.startswith(_INTERPRETER_NOISE)][-_LOG_TAIL_LINES:])
