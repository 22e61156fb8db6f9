"""Where plaintext and keys are, and are not: the promise of docs/architecture.md §1, in a whole stack."""

from __future__ import annotations

import base64
import secrets
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from infra import process_memory, provision
from mrgc.client import Client
from mrgc.payloads import JobOptions
from mrgc.submitted import SubmittedJob
from tests.e2e.conftest import SERVE_S, RunningStack
from tests.waiting import until

JOBS = 120


@pytest.fixture(scope="module")
def events(stack: RunningStack) -> Iterator[list[str]]:
    """Everything that Celery's event stream carries while the module runs, as text."""
    app = Celery(broker=stack.layout.redis_url("operator", database=1))
    app.conf.broker_transport_options = {"global_keyprefix": "ctl:"}
    seen: list[str] = []
    stopping = threading.Event()

    def capture() -> None:
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": lambda event: seen.append(repr(event))})
            while not stopping.is_set():
                try:
                    receiver.capture(limit=None, timeout=0.5, wakeup=True)
                except TimeoutError:
                    continue

    thread = threading.Thread(target=capture)
    thread.start()
    app.control.enable_events()
    yield seen
    stopping.set()
    thread.join()
    app.close()


def plant(client: Client) -> tuple[bytes, list[SubmittedJob]]:
    """Send jobs whose every text holds one canary, and open their results."""
    canary = f"canary {secrets.token_hex(16)}"
    jobs = list(client.submit_many([f"{canary} number {index}", canary] for index in range(JOBS)))
    outcomes = list(client.wait(jobs, timeout_s=SERVE_S))
    assert {outcome.state for outcome in outcomes} == {"ok"}
    return canary.encode(), jobs


def plant_failures(client: Client, canary: bytes) -> None:
    """Send jobs with the canary that end in errors: refused before opening, not authentic, and failed afterwards."""
    text, options = canary.decode(), JobOptions(client.settings.model)
    forged = client.seal([text], options)
    refused = [client.seal([text], JobOptions(client.settings.model, floor=1)), forged[:-1] + bytes([forged[-1] ^ 1])]
    failed = client.seal([text + " word" * 600], options)
    outcomes = client.wait(client.send([*refused, failed]), timeout_s=SERVE_S)
    assert {outcome.code for outcome in outcomes} == {"trust_floor", "auth", "input_too_long"}


def pages(stack: RunningStack) -> str:
    """Return what worker and agent tell whoever asks them over HTTP."""
    paths = {"worker": ("metrics", "healthz", "readyz"), "agent": ("metrics",)}
    texts = []
    for part, names in paths.items():
        for name in names:
            with urllib.request.urlopen(f"http://127.0.0.1:{stack.layout.ports[part]}/{name}", timeout=10) as answer:
                texts.append(answer.read().decode())
    return "\n".join(texts)


def spellings(secret: bytes) -> list[bytes]:
    """The forms in which a secret could be written down; base64 less its ends, which depend on the neighbours."""
    return [secret, secret.hex().encode(), base64.b64encode(secret)[4:-4]]


def data_key_of(stack: RunningStack, job: SubmittedJob) -> bytes:
    """Ask the KMS for a job's data key, as its tenant may."""
    answer: Any = provision.kms(stack.layout, job.tenant).decrypt(
        KeyId=job.key_arn, CiphertextBlob=job.edk, EncryptionContext=job.context
    )
    return bytes(answer["Plaintext"])


def holders(directory: Path, needles: list[bytes]) -> list[str]:
    """Return the files below `directory` that hold any needle."""
    return [
        str(path.relative_to(directory))
        for path in directory.rglob("*")
        if path.is_file() and any(needle in path.read_bytes() for needle in needles)
    ]


@pytest.mark.timeout(180)
def test_no_canary_no_data_key_and_no_token_leaves_engine_and_enclave(stack: RunningStack, events: list[str]) -> None:
    """Statement 8: neither the Celery process, Redis, logs, metrics, store nor Celery's events hold plaintext or key.

    Nor the token; and jobs that end in an error leave no more behind than those that are served.
    """
    with stack.client("acme") as client:
        canary, jobs = plant(client)
        plant_failures(client, canary)
    data_key = data_key_of(stack, jobs[0])
    token = stack.layout.token_file.read_bytes()
    secrets_of_the_run = {"canary": canary, "data key": data_key, "token": token}
    for part in ("worker", "redis", "agent"):
        allowed = {"token"} if part == "agent" else set()
        for name, secret in secrets_of_the_run.items():
            if name not in allowed:
                assert process_memory.find(stack.pid(part), spellings(secret)) == {}, (part, name)
    needles = [spelling for secret in secrets_of_the_run.values() for spelling in spellings(secret)]
    for folder in ("redis", "logs", "results", "kms", "state"):
        assert holders(stack.directory / folder, needles) == [], folder
    told = [*events, pages(stack)]
    assert not any(needle in text.encode() for text in told for needle in needles)
    assert "mrgc_enclave_jobs_opened_total" in told[-1]
    assert "mrgc_jobs_served_total" in told[-1]
    # The searches can find: the intake holds its registry, and the store what is public of a result.
    assert process_memory.find(stack.pid("worker"), [jobs[0].key_arn.encode()])
    assert len(holders(stack.directory / "results", [jobs[0].job])) == 1


@pytest.mark.timeout(180)
def test_the_engine_holds_no_data_key(stack: RunningStack) -> None:
    """Statement 8: plaintext is in the engine for the length of a batch; data keys never are."""
    with stack.client("globex") as client:
        _, jobs = plant(client)
    assert process_memory.find(stack.pid("engine"), spellings(data_key_of(stack, jobs[0]))) == {}


def test_the_engine_has_no_inet_socket(stack: RunningStack) -> None:
    """The process that holds plaintext cannot talk to a network; the intake, which can, shows that the look sees."""
    until(lambda: process_memory.inet_sockets(stack.pid("worker")), within_s=10, what="the intake's own sockets")
    assert process_memory.inet_sockets(stack.pid("engine")) == []
