"""The demo: real texts, sealed by two tenants, through the whole one-machine system and back. `make demo`.

Starts `infra.local`, submits a corpus half by each tenant, opens every result, answers a few questions by nearest
embeddings so that a person sees that the answers make sense, and counts what was lost or doubled.

May import: everything. Nothing imports it but tests.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from infra import docstrings
from infra.demo_counts import Counts, count_objects, scrape
from infra.local import read_env
from infra.local_enclave import REPOSITORY
from mrgc.client import Client
from mrgc.errors import MrgcError, WaitTimeout
from mrgc.payloads import JobOptions
from mrgc.submitted import SubmittedJob

TENANTS: Final = ("acme", "globex")
ITEMS_PER_JOB: Final = 16
START_S: Final = 180.0
WAIT_S: Final = 1_800.0
QUESTIONS: Final = (
    "parse command line options",
    "send an email message",
    "compress a file",
    "run several threads at the same time",
    "read a configuration file",
)
ANSWERS: Final = 3
_ANSWER_CHARS: Final = 66


class Corpus(NamedTuple):
    """What one tenant sent, and the embedding of each text; NaN rows for texts without one."""

    texts: list[str]
    embeddings: NDArray[np.float32]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns 0 only if no job was lost and no result doubled."""
    parser = argparse.ArgumentParser(prog="python -m infra.demo", description="the whole system on one machine")
    parser.add_argument("--file", type=Path, help="a text file of your own, one text per line")
    parser.add_argument("--models", type=Path, required=True, help="folder with the all-minilm-l6-v2 model folder")
    parser.add_argument(
        "--queue", choices=("redis", "sqs"), default="redis", help="broker of the jobs (default: %(default)s)"
    )
    parser.add_argument(
        "--enclave", choices=("process", "vm"), default="process", help="where it runs (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    console = Console(stderr=True)
    try:
        texts = _own_texts(options.file) if options.file else docstrings.texts()
        with running_stack(options.models, console, queue=options.queue, enclave=options.enclave) as directory:
            counts = _run(directory, texts, console)
    except MrgcError as error:
        console.print(f"demo: failed: {error}", highlight=False)
        return 1
    print(counts.last_line() + (f" enclave={options.enclave}" if options.enclave != "process" else ""))
    return 0 if counts.lost == counts.doubled == 0 else 1


@contextmanager
def running_stack(
    models: Path, console: Console, *, queue: str = "redis", enclave: str = "process", device: str = "cpu"
) -> Iterator[Path]:
    """Run `infra.local up` in a fresh directory and yield the directory once it is ready.

    Args:
        models: folder of model folders.
        console: for a person.
        queue: broker of the jobs, redis or sqs.
        enclave: where it runs, process or vm.
        device: where the engine computes, cpu or cuda:N.

    Raises:
        WaitTimeout: it ended, or was not ready in time; its logs were printed.
    """
    with tempfile.TemporaryDirectory(prefix="mrgc-demo-") as name:
        directory = Path(name)
        command = [sys.executable, "-m", "infra.local", "up", "--dir", name, "--models", str(models.resolve())]
        command += ["--queue", queue, "--enclave", enclave, "--device", device]
        with (directory / "local.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "--tenants", ",".join(TENANTS)], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=log
            )
        with console.status(f"starting {queue}, kms, enclave, agent, engine and worker"):
            # Ends with `ready`, or with the end of the process, whose own start has a deadline.
            line = process.stdout.readline() if process.stdout else b""
        try:
            if line != b"ready\n":
                console.print((directory / "local.log").read_text(), highlight=False, markup=False)
                raise WaitTimeout("the one-machine stack did not become ready")
            yield directory
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()


def _run(directory: Path, texts: list[str], console: Console) -> Counts:
    half = (len(texts) + 1) // 2
    shares = [share for share in (texts[:half], texts[half:]) if share]
    with ExitStack() as cleanup:
        clients = [
            cleanup.enter_context(Client.from_env(read_env(directory / f"env.{tenant}")))
            for tenant in TENANTS[: len(shares)]
        ]
        started_s = time.monotonic()
        submitted, corpora = _embed(clients, shares, console)
        wall_s = time.monotonic() - started_s
        objects = count_objects(directory / "results", submitted)
        enclave = scrape(directory)
        _answer(clients[0], corpora, console)
    counts = Counts(
        jobs=len(submitted),
        texts=len(texts),
        wall_s=wall_s,
        kms_calls=int(enclave["mrgc_enclave_kms_calls_total"]),
        round_trips=int(enclave["mrgc_enclave_open_batches_total"] + enclave["mrgc_enclave_seal_batches_total"]),
        lost=sum(count == 0 for count in objects.values()),
        doubled=sum(count > 1 for count in objects.values()),
        pcr0=json.loads((directory / "catalog.json").read_text())["pcr0"],
    )
    console.print(counts.table())
    return counts


def _embed(clients: list[Client], shares: list[list[str]], console: Console) -> tuple[list[SubmittedJob], list[Corpus]]:
    submitted: list[SubmittedJob] = []
    corpora = []
    total = sum(-(-len(share) // ITEMS_PER_JOB) for share in shares)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        sending = progress.add_task("sealed and sent", total=total)
        opening = progress.add_task("opened", total=total)
        sent = []
        for client, texts in zip(clients, shares, strict=True):
            options = JobOptions(client.settings.model, truncate=True)
            jobs = []
            for job in client.submit_many(_chunks(texts), options=options):
                jobs.append(job)
                progress.advance(sending)
            sent.append(jobs)
            submitted += jobs
        for client, texts, jobs in zip(clients, shares, sent, strict=True):
            embeddings = collect(client, jobs, len(texts), on_result=lambda: progress.advance(opening))
            corpora.append(Corpus(texts, embeddings))
    return submitted, corpora


def collect(
    client: Client, jobs: list[SubmittedJob], rows: int, *, on_result: Callable[[], None] | None = None
) -> NDArray[np.float32]:
    """Wait for the jobs of consecutive texts and lay their embeddings out in input order.

    Returns:
        float32 (rows, D); a row without an embedding is NaN.

    Raises:
        WaitTimeout: a job ended without a result.
    """
    position = {job.job: index * ITEMS_PER_JOB for index, job in enumerate(jobs)}
    table: NDArray[np.float32] | None = None
    for outcome in client.wait(jobs, timeout_s=WAIT_S):
        if outcome.result is None:
            raise WaitTimeout(f"job {outcome.job.id} ended without a result: {outcome.state} {outcome.code}")
        for offset, row in enumerate(outcome.result.json()["embeddings"]):
            if row is not None:
                if table is None:
                    table = np.full((rows, len(row)), np.nan, np.float32)
                table[position[outcome.job.job] + offset] = row
        if on_result is not None:
            on_result()
    return table if table is not None else np.full((rows, 1), np.nan, np.float32)


def _answer(client: Client, corpora: list[Corpus], console: Console) -> None:
    texts = [text for corpus in corpora for text in corpus.texts]
    embeddings = np.nan_to_num(np.concatenate([corpus.embeddings for corpus in corpora]))
    asked = collect(client, client.submit(QUESTIONS, items_per_job=ITEMS_PER_JOB), len(QUESTIONS))
    for question, row in zip(QUESTIONS, asked, strict=True):
        # Embeddings have length 1, so the dot product is the cosine.
        scores = embeddings @ row
        console.print(f"\n[bold]{question}[/bold]")
        for index in np.argsort(scores)[::-1][:ANSWERS]:
            first_line = " ".join(texts[index].split())[:_ANSWER_CHARS]
            console.print(f"  {scores[index]:.2f}  {first_line}", highlight=False, markup=False)


def _own_texts(file: Path) -> list[str]:
    texts = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not texts:
        raise WaitTimeout(f"{file} has no text")
    return texts


def _chunks(texts: list[str]) -> Iterator[list[str]]:
    remaining = iter(texts)
    while chunk := list(islice(remaining, ITEMS_PER_JOB)):
        yield chunk


if __name__ == "__main__":
    sys.exit(main())
