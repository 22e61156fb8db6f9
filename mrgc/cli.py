"""The `mrgc` command: submit texts, wait for results, fetch and open them; verify enclaves, write key policies.

A shell around `mrgc.client`, which is imported only when a command runs: boto3, redis and obstore take half a second.
Standard output carries one line per job, standard error one line per error, and no traceback for an error that mrgc
knows.

May import: typer and the tenant's modules of mrgc.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mrgc.cli_files import JOB_ID, open_input, read_arguments, read_sealed, write_private
from mrgc.cli_lines import (
    print_error_of,
    print_fetched,
    print_outcome,
    print_result,
    print_standalone,
    print_submitted,
)
from mrgc.cli_policy import app as policy_app
from mrgc.cli_report import EPILOG, ExitCode, exit_code_of, gravest, print_error, print_note, progress
from mrgc.cli_verify import EPILOG as VERIFY_EPILOG
from mrgc.cli_verify import verify
from mrgc.errors import InputFileError, MrgcError, ResultMissing, ResultRefused, TooLargeError
from mrgc.inputs import DEFAULT_ITEMS_PER_JOB, LineFormat, read_jobs
from mrgc.payloads import DEFAULT_LIFETIME_S, JobOptions
from mrgc.results import MAX_RESULT_BYTES, OpenedResult, job_of
from mrgc.spool import SealedSpool, SpooledJob
from mrgc.standalone import OpenedStandalone, is_standalone
from mrgc.submitted import SubmittedJob
from mrgc.waiting import State
from mrgc.wire.headers import JSON_TYPE, MAX_ITEMS, MAX_LIFETIME_S, OCTET_STREAM_TYPE, SAFETENSORS_TYPE

if TYPE_CHECKING:
    from mrgc.client import Client

_SUMMARY: Final = """Confidential batch inference: sealed jobs in, sealed results out.

mrgc submit texts.txt > ids; mrgc wait - < ids; mrgc fetch - -o out < ids; mrgc open out/*.mrgc

Before that: mrgc policy writes the key's policy, mrgc verify judges an enclave's document. Both have exit codes of
their own: see their --help.

Settings: MRGC_TENANT, MRGC_KEY_ARN, MRGC_QUEUE_URL, MRGC_RESULTS_URL, MRGC_MODEL, MRGC_STATE (records of submitted
jobs), and AWS credentials as boto3 takes them.
"""

app = typer.Typer(
    name="mrgc",
    help=_SUMMARY,
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class Accept(StrEnum):
    """Names of result types on the command line."""

    JSON = "json"
    SAFETENSORS = "safetensors"


_TYPES: Final = {Accept.JSON: JSON_TYPE, Accept.SAFETENSORS: SAFETENSORS_TYPE}
_SUFFIXES: Final = {JSON_TYPE: "json", SAFETENSORS_TYPE: "safetensors", OCTET_STREAM_TYPE: "bin"}
_EXIT_CODES: Final = {
    State.OK: ExitCode.OK,
    State.PARTIAL: ExitCode.PARTIAL,
    State.FAILED: ExitCode.FAILED,
    State.REFUSED: ExitCode.REFUSED,
    State.NOT_AUTHENTIC: ExitCode.NOT_AUTHENTIC,
    State.TIMED_OUT: ExitCode.TIMED_OUT,
}

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
_Jobs = Annotated[list[str], typer.Argument(metavar="JOB...", help="Job ids; - reads them from standard input.")]


def main() -> None:
    """Run the command line and exit with one of `ExitCode`."""
    try:
        app()
    except MrgcError as error:
        print_error(error)
        sys.exit(exit_code_of(error))


@app.command(epilog=EPILOG)
def submit(  # noqa: PLR0917 - typer takes one parameter per option
    file: Annotated[str, typer.Argument(metavar="FILE.jsonl|FILE.txt|-")],
    model: Annotated[str, typer.Option(metavar="NAME", help="name or name@sha256:digest; default MRGC_MODEL")] = "",
    items_per_job: Annotated[int, typer.Option(min=1, max=MAX_ITEMS)] = DEFAULT_ITEMS_PER_JOB,
    expires: Annotated[
        int, typer.Option(min=1, max=MAX_LIFETIME_S, metavar="SECONDS", help="life of the jobs")
    ] = DEFAULT_LIFETIME_S,
    floor: Annotated[int, typer.Option(min=0, max=3, help="lowest trust tier that may see the texts")] = 0,
    truncate: Annotated[bool, typer.Option("--truncate", help="cut texts that are too long for the model")] = False,
    accept: Annotated[Accept, typer.Option(help="type of the results")] = Accept.JSON,
    label: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="score each text against labels; give 2 to 64")
    ] = None,
    line_format: Annotated[LineFormat | None, typer.Option("--format", help="of FILE; default by its name")] = None,
    json_lines: _Json = False,
) -> None:
    """Seal the texts of FILE into jobs, send them, and print the job ids.

    .txt: one text per line, blank lines skipped. .jsonl: per line a string, {"text": string}, {"ids": [integer, ...]}
    (token ids of a text, as the model's own tokeniser gives them), or {"inputs": [string, ...]}, which is one job.
    Standard input (-) is read as .txt unless --format says otherwise. A line that cannot be sent is reported as
    FILE:LINE and nothing is sent. Memory: 16 MiB and a few copies of one job, however long FILE is.
    """
    chosen = line_format or _format_of(file)
    with _client() as client, SealedSpool(client.settings.state) as spool, progress("sealed") as sealed_one:
        options = JobOptions(model or client.settings.model, expires, floor, truncate, _TYPES[accept], label or ())
        with open_input(file) as stream:
            for job in read_jobs(stream, name=file, line_format=chosen, items_per_job=items_per_job):
                try:
                    spool.add(SpooledJob(client.seal(job.inputs, options), job.first_line, job.last_line))
                except TooLargeError as error:
                    raise InputFileError(f"{file}:{job.first_line}: {error}") from error
                sealed_one()
        with progress("sent", len(spool)) as sent_one:
            for submitted, spooled in _send(client, spool):
                print_submitted(submitted, spooled, json_lines=json_lines)
                sent_one()


@app.command(epilog=EPILOG)
def wait(
    jobs: _Jobs,
    timeout: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="give up after so long")] = None,
    json_lines: _Json = False,
) -> None:
    """Wait until every job has ended, and print how, as they end.

    Each result is read and authenticated before it counts. The wait for a job ends at its expiry at the latest. An
    unauthenticated hint of the service that it refused a job ends its wait too, and is printed as such.
    """
    codes = set()
    ids = _job_ids(jobs)
    with _client() as client:
        submitted = [client.find(job) for job in ids]
        with progress("ended", len(submitted)) as ended_one:
            for outcome in client.wait(submitted, timeout_s=timeout):
                codes.add(_EXIT_CODES[outcome.state])
                print_outcome(outcome, json_lines=json_lines)
                ended_one()
    raise typer.Exit(gravest(codes))


@app.command(epilog=EPILOG)
def fetch(
    jobs: _Jobs,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="folder for JOB.mrgc files")],
    json_lines: _Json = False,
) -> None:
    """Download results, still sealed, as DIR/JOB.mrgc, and print the files' names. `mrgc open` verifies them."""
    codes = set()
    ids = _job_ids(jobs)
    with _client() as client:
        submitted = [client.find(job) for job in ids]
        with progress("fetched", len(submitted)) as fetched_one:
            for job, data in client.fetch_many(submitted):
                if data is None:
                    codes.add(_report(ResultMissing(f"job {job.id} has no result"), job.id, json_lines=json_lines))
                else:
                    path = write_private(output, f"{job.id}.mrgc", data)
                    print_fetched(job, path, len(data), json_lines=json_lines)
                fetched_one()
    raise typer.Exit(gravest(codes))


@app.command(name="open", epilog=EPILOG)
def open_results(
    sources: Annotated[
        list[str], typer.Argument(metavar="FILE|JOB...", help="Fetched files or job ids; - reads them from stdin.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="write bodies to DIR/JOB.json or .safetensors")
    ] = None,
    json_lines: _Json = False,
) -> None:
    """Verify results against the jobs that were submitted, decrypt them, and print their bodies.

    A FILE named JOB.mrgc, as `mrgc fetch` names it, must hold that job's result; a file of another name may hold the
    result of any submitted job, or an answer of the JSON protocol to a bare ciphertext, which belongs to no job: it
    proves only that its maker may use the key. A body that is not JSON needs -o.
    """
    codes = set()
    words = _words(sources)
    with _client() as client:
        for source in words:
            try:
                codes.add(_show(_open(client, source), source, output, json_lines=json_lines))
            except (ResultRefused, ResultMissing) as error:
                codes.add(_report(error, source, json_lines=json_lines))
    raise typer.Exit(gravest(codes))


app.command(epilog=VERIFY_EPILOG)(verify)
app.add_typer(policy_app, name="policy")


def _client() -> Client:
    from mrgc.client import Client  # noqa: PLC0415 - see the module's docstring

    return Client.from_env(os.environ)


def _format_of(file: str) -> LineFormat:
    suffix = ".txt" if file == "-" else Path(file).suffix
    if suffix not in {f".{known}" for known in LineFormat}:
        raise typer.BadParameter(f"{file} is neither .jsonl nor .txt: say --format")
    return LineFormat(suffix[1:])


def _words(arguments: list[str]) -> list[str]:
    """Return what a command is to work on: something, because an empty list is what a failed `mrgc submit` leaves."""
    words = read_arguments(arguments)
    if not words:
        raise typer.BadParameter("standard input names no job")
    return words


def _job_ids(arguments: list[str]) -> list[str]:
    ids = _words(arguments)
    for word in ids:
        if JOB_ID.fullmatch(word) is None:
            raise typer.BadParameter(f"{word[:64]!r} is not a job id of 32 hex digits")
    return ids


def _send(client: Client, spool: SealedSpool) -> Iterator[tuple[SubmittedJob, SpooledJob]]:
    """Send the spool's jobs and pair each with its lines; a batch of them is under way at a time."""
    under_way: deque[SpooledJob] = deque()

    def sealed_jobs() -> Iterator[bytes]:
        for spooled in spool:
            under_way.append(spooled)
            yield spooled.sealed

    for submitted in client.send(sealed_jobs()):
        yield submitted, under_way.popleft()


def _open(client: Client, source: str) -> OpenedResult | OpenedStandalone:
    """Open a file or, where there is none of that name, the stored result of a job."""
    path = Path(source)
    if path.exists():
        data = read_sealed(path, max_bytes=MAX_RESULT_BYTES)
        is_of_a_job = JOB_ID.fullmatch(path.stem) is not None
        # Never in a result's place: it proves less. Then `job_of` says that it is no sealed result.
        if is_standalone(data) and not is_of_a_job:
            return client.open_standalone(data)
        # The store may have swapped two of the tenant's own results before `mrgc fetch` named them.
        if is_of_a_job and job_of(data).hex() != path.stem:
            raise ResultRefused(f"{path} holds the result of another job")
        return client.open(data)
    if JOB_ID.fullmatch(source) is None:
        raise typer.BadParameter(f"{source} is neither a file nor a job id")
    job = client.find(source)
    return client.open(client.fetch(job), job=job)


def _show(opened: OpenedResult | OpenedStandalone, source: str, output: Path | None, *, json_lines: bool) -> ExitCode:
    """Print what was opened, or write its body below `output`."""
    if isinstance(opened, OpenedResult):
        path = _written(opened, opened.job.id, output)
        print_result(opened, path, json_lines=json_lines)
        return _EXIT_CODES[State(opened.status)]
    path = _written(opened, Path(source).stem, output)
    print_note(f"{source} answers no job: it proves only that its maker may use the key")
    print_standalone(opened, path, json_lines=json_lines)
    return ExitCode.OK


def _written(opened: OpenedResult | OpenedStandalone, name: str, output: Path | None) -> Path | None:
    if output is not None:
        return write_private(output, f"{name}.{_SUFFIXES[opened.type]}", opened.body)
    if opened.type != JSON_TYPE:
        raise typer.BadParameter(f"the body of {name} is {opened.type}: say -o DIR")
    return None


def _report(error: MrgcError, source: str, *, json_lines: bool) -> ExitCode:
    """Report one job's error and go on: the other jobs are served."""
    print_error(error)
    if json_lines:
        print_error_of(source, error)
    return exit_code_of(error)


if __name__ == "__main__":
    main()
