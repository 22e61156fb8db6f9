"""What commands say beside their output: exit codes, and errors and progress on standard error.

Called by `mrgc.cli`. May import: the standard library, rich (when a bar is drawn), mrgc.errors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Final

from mrgc import errors
from mrgc.errors import MrgcError


class ExitCode(IntEnum):
    """Exit codes, each with its line in `mrgc --help`."""

    OK = 0, "every job has the best outcome"
    INTERNAL = 1, "internal error"
    USAGE = 2, "wrong usage"
    PARTIAL = 3, "partial: some inputs of a job failed"
    FAILED = 4, "failed: a job has a sealed failure result"
    REFUSED = 5, "refused: the service says, unauthenticated, that it refused a job"
    TIMED_OUT = 6, "timed out: a job has no result, and the wait or the job's life is over"
    MISSING = 7, "a job has no result yet (fetch, open)"
    NOT_AUTHENTIC = 8, "a stored object is not the authentic result of the job that was submitted"
    INPUT = 9, "FILE has a line that cannot be sent; nothing was sent"
    CONFIG = 10, "a setting or a local file is missing, malformed or unusable"
    UNAVAILABLE = 11, "queue, object store or KMS does not answer: try again"
    KEY_ACCESS = 12, "KMS refuses the data key"

    meaning: str

    def __new__(cls, value: int, meaning: str) -> ExitCode:  # noqa: PYI034 - an enum has no subclass
        """Make a member from its number and its meaning."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member


#: When jobs end differently, the command's exit code is the first of these that occurred.
GRAVITY: Final = (
    ExitCode.NOT_AUTHENTIC,
    ExitCode.REFUSED,
    ExitCode.FAILED,
    ExitCode.TIMED_OUT,
    ExitCode.MISSING,
    ExitCode.PARTIAL,
    ExitCode.OK,
)

#: The backspace tells typer to keep the lines of a paragraph as they are.
EPILOG: Final = "\n".join(
    (
        "\b",
        "Exit codes:",
        *(f"{code.value:4}  {code.meaning}" for code in ExitCode),
        "",
        f"When jobs end differently: the first of {', '.join(str(code.value) for code in GRAVITY)}.",
    )
)

_BY_ERROR: Final[dict[type[MrgcError], ExitCode]] = {
    errors.InputFileError: ExitCode.INPUT,
    errors.ConfigError: ExitCode.CONFIG,
    errors.QueueUnavailable: ExitCode.UNAVAILABLE,
    errors.StoreUnavailable: ExitCode.UNAVAILABLE,
    errors.KeyBusyError: ExitCode.UNAVAILABLE,
    errors.KeyAccessError: ExitCode.KEY_ACCESS,
    errors.ResultMissing: ExitCode.MISSING,
    errors.ResultRefused: ExitCode.NOT_AUTHENTIC,
}


def exit_code_of(error: MrgcError) -> ExitCode:
    """Map an error to its exit code; the nearest class wins."""
    return next((_BY_ERROR[cls] for cls in type(error).__mro__ if cls in _BY_ERROR), ExitCode.INTERNAL)


def gravest(codes: set[ExitCode]) -> ExitCode:
    """Choose one exit code for jobs that ended differently."""
    return next((code for code in GRAVITY if code in codes), ExitCode.OK)


def print_error(error: MrgcError) -> None:
    """Write an error as one line to standard error."""
    text = " ".join(str(error).split())
    sys.stderr.write(f"mrgc: {error.code}: {text}\n")


def print_note(text: str) -> None:
    """Write something to know beside the output, as one line to standard error."""
    sys.stderr.write(f"mrgc: note: {' '.join(text.split())}\n")


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """Show a bar on standard error while it is a terminal; otherwise nothing.

    Args:
        label: what is counted.
        total: how many, if that is known.

    Yields:
        A function that counts one.
    """
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console  # noqa: PLC0415 - a tenth of a second that only a terminal needs
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # rich would send standard output's lines to stderr too, above the bar: right only if both are the terminal.
    both = sys.stdout.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=both) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)
