"""What commands print on standard output: one line per job, as text for people or as JSON for programs.

Called by `mrgc.cli` and its commands. May import: the standard library, mrgc.errors, mrgc.results, mrgc.spool,
mrgc.standalone, mrgc.submitted, mrgc.waiting.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mrgc.errors import MrgcError
from mrgc.results import OpenedResult
from mrgc.spool import SpooledJob
from mrgc.standalone import OpenedStandalone
from mrgc.submitted import SubmittedJob
from mrgc.waiting import Outcome, State


def print_submitted(job: SubmittedJob, spooled: SpooledJob, *, json_lines: bool) -> None:
    """Print a sent job: its id, or its record and the lines of the file that it was made of."""
    fields: dict[str, object] = {
        "job": job.id,
        "request": job.request.hex(),
        "model": job.model,
        "items": job.items,
        "created": job.created,
        "expires": job.expires,
        "first_line": spooled.first_line,
        "last_line": spooled.last_line,
    }
    print_line(_json(fields) if json_lines else job.id)


def print_outcome(outcome: Outcome, *, json_lines: bool) -> None:
    """Print how the wait for a job ended, and whether anything but an unauthenticated hint says so."""
    result = outcome.result
    fields: dict[str, object] = {
        "job": outcome.job.id,
        "state": outcome.state,
        "authentic": result is not None,
    }
    if outcome.code:
        fields["code"] = outcome.code
    if result is not None:
        fields |= {"model": result.model, "tier": result.tier, "created": result.created}
    words = [outcome.job.id, outcome.state, outcome.code]
    if outcome.state is State.REFUSED:
        words.append("(unauthenticated hint)")
    print_line(_json(fields) if json_lines else " ".join(filter(None, words)))


def print_fetched(job: SubmittedJob, path: Path, size_bytes: int, *, json_lines: bool) -> None:
    """Print where a sealed result was written."""
    print_line(_json({"job": job.id, "path": str(path), "bytes": size_bytes}) if json_lines else str(path))


def print_result(result: OpenedResult, path: Path | None, *, json_lines: bool) -> None:
    """Print an opened result: its body, or the file that the body was written to.

    A body is printed as one line of ASCII JSON, so that no character in it can act on a terminal.

    Raises:
        ResultRefused: the body is to be printed and is not JSON.
    """
    fields: dict[str, object] = {
        "job": result.job.id,
        "status": result.status,
        "model": result.model,
        "type": result.type,
        "tier": result.tier,
        "created": result.created,
    }
    if path is not None:
        print_line(_json(fields | {"path": str(path)}) if json_lines else str(path))
    else:
        body = result.json()
        print_line(_json(fields | {"body": body} if json_lines else body))


def print_standalone(answer: OpenedStandalone, path: Path | None, *, json_lines: bool) -> None:
    """Print an opened standalone object: its body, or the file that the body was written to.

    Raises:
        ResultRefused: the body is to be printed and is not JSON.
    """
    fields: dict[str, object] = {
        "standalone": True,
        "request_id": answer.request_id,
        "type": answer.type,
        "created": answer.created,
    }
    if path is not None:
        print_line(_json(fields | {"path": str(path)}) if json_lines else str(path))
    else:
        body = answer.json()
        print_line(_json(fields | {"body": body} if json_lines else body))


def print_error_of(source: str, error: MrgcError) -> None:
    """Print the error of one job or file as JSON; its text goes to standard error."""
    print_line(_json({"source": source, "error": error.code}))


def _json(value: object) -> str:
    return json.dumps(value)


def print_line(text: str) -> None:
    """Print text and a line end."""
    # At once: the reader of a pipe may act on a line while the command goes on.
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
