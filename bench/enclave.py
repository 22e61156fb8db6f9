"""What the enclave costs per job at its socket: `python -m bench.enclave [--json]`.

A real enclave process and a real local KMS on one machine. In each round one client opens 64 sealed jobs of 4 KiB in
one frame, seals 64 results of 4 KiB in one frame, and then sends the same 64 jobs and results one by one through the
JSON protocol. All checks of docs/spec.md §2 run, the data key is in the enclave's cache, and a time is the whole round
trip: the client builds the request, the enclave answers it, the client parses the answer. The kinds take turns within
a round, so that a busy machine is busy for all of them.

With --json the last line of standard output is one object. `open_us_per_job` and `seal_us_per_job` are those of the
least disturbed round, `…_median` those of the middle one; `ratio_vs_seed_json` is the median over the rounds of
(decrypt + encrypt) / (open + seal).
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from infra import provision
from infra.local_enclave import REPOSITORY, pcrs
from infra.local_nsm import create_pki
from infra.provision import Stack
from mrgc.wire import enclave_protocol, frames
from mrgc.wire.addresses import connect, parse_address
from mrgc.wire.enclave_protocol import Credentials, Hello, Op, Opened, SealRequest
from mrgc.wire.headers import JSON_PROTOCOL_MODEL, JSON_TYPE
from mrgc.wire.sealed import JobDraft, parse_job, seal_job

JOBS: Final = 64
BODY_BYTES: Final = 4_096
WARM_UP: Final = 5
START_S: Final = 60.0
TENANT: Final = "acme"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Round:
    """Microseconds per job of one round."""

    open_us: float
    seal_us: float
    json_us: float

    @property
    def ratio(self) -> float:
        """How many times the JSON protocol takes as long as the two batches."""
        return self.json_us / (self.open_us + self.seal_us)


@dataclass(frozen=True, slots=True)
class Work:
    """What every round does anew."""

    key_arn: str
    jobs: list[bytes]
    aads: list[bytes]
    body: bytes


class Client:
    """One connection to the enclave, as an engine has it, that speaks both protocols."""

    def __init__(self, sock: socket.socket, work: Work) -> None:
        self._sock = sock
        self._work = work

    def open(self) -> list[Opened]:
        """Open all jobs in one frame."""
        frames.send(self._sock, enclave_protocol.open_batch_request(1, self._work.jobs))
        outcomes = enclave_protocol.parse_opened(frames.recv(self._sock), JOBS)
        return [outcome for outcome in outcomes if isinstance(outcome, Opened)]

    def seal(self, opened: list[Opened]) -> int:
        """Seal one result for each job in one frame; return how many were sealed."""
        results = [
            SealRequest(job.request, job.ticket, "ok", JSON_PROTOCOL_MODEL, JSON_TYPE, aad, self._work.body)
            for job, aad in zip(opened, self._work.aads, strict=True)
        ]
        frames.send(self._sock, enclave_protocol.seal_batch_request(2, results))
        outcomes = enclave_protocol.parse_sealed(frames.recv(self._sock), JOBS)
        return sum(isinstance(outcome, memoryview) for outcome in outcomes)

    def one_by_one(self) -> int:
        """Decrypt each job and encrypt its result in the JSON protocol; return how many were sealed."""
        sealed = 0
        for number, job in enumerate(self._work.jobs):
            names = {"kms_key_arn": self._work.key_arn, "request_id": f"req-{number}"}
            payload = base64.b64encode(job).decode()
            plain = self._ask(action="decrypt", encrypted_payload=payload, tenant_id=TENANT, **names)
            base64.b64decode(plain["plaintext"])
            result = base64.b64encode(self._work.body).decode()
            answer = self._ask(action="encrypt", plaintext_result=result, **names)
            sealed += bool(base64.b64decode(answer["encrypted_response"]))
        return sealed

    def _ask(self, **members: str) -> dict[str, Any]:
        body = json.dumps(members).encode()
        self._sock.sendall(len(body).to_bytes(4, "big") + body)
        answer: dict[str, Any] = json.loads(frames.recv_body(self._sock, frames.recv_length(self._sock)))
        return answer


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.enclave", description="cost per job at the enclave's socket")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="mrgc-bench-") as name, running(Path(name)) as client:
        rounds = [measure(client) for _ in range(WARM_UP + options.rounds)][WARM_UP:]
    report(rounds)
    if options.json:
        print(json.dumps(summary(rounds)), flush=True)
    return 0


def measure(client: Client) -> Round:
    """Time one round, and check that it did its work."""
    opened, open_us = timed(client.open)
    sealed, seal_us = timed(lambda: client.seal(opened))
    one_by_one, json_us = timed(client.one_by_one)
    assert len(opened) == sealed == one_by_one == JOBS
    return Round(open_us, seal_us, json_us)


def timed(act: Callable[[], T]) -> tuple[T, float]:
    """Return what `act` returns, and microseconds per job."""
    started_s = time.perf_counter()
    result = act()
    return result, (time.perf_counter() - started_s) / JOBS * 1e6


def summary(rounds: list[Round]) -> dict[str, float]:
    """Return the figures of the last line."""
    return {
        "open_us_per_job": round(min(each.open_us for each in rounds), 1),
        "seal_us_per_job": round(min(each.seal_us for each in rounds), 1),
        "ratio_vs_seed_json": round(statistics.median(each.ratio for each in rounds), 2),
        "open_us_per_job_median": round(statistics.median(each.open_us for each in rounds), 1),
        "seal_us_per_job_median": round(statistics.median(each.seal_us for each in rounds), 1),
        "json_us_per_job": round(min(each.json_us for each in rounds), 1),
        "load_average": round(os.getloadavg()[0], 2),
    }


def report(rounds: list[Round]) -> None:
    """Print a table to standard error."""
    rows = {
        "open_batch": [each.open_us for each in rounds],
        "seal_batch": [each.seal_us for each in rounds],
        "JSON decrypt + encrypt": [each.json_us for each in rounds],
    }
    print(f"us per job, {JOBS} jobs of {BODY_BYTES} bytes, {len(rounds)} rounds", file=sys.stderr)
    for name, values in rows.items():
        print(f"{name:24} min {min(values):7.1f}   median {statistics.median(values):7.1f}", file=sys.stderr)
    ratio = statistics.median(each.ratio for each in rounds)
    print(f"{'JSON / (open + seal)':24} median {ratio:.2f}", file=sys.stderr)
    print(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} processors", file=sys.stderr)


@contextmanager
def running(directory: Path) -> Iterator[Client]:
    """Run a KMS and an enclave in `directory`, and connect to the enclave with token and credentials given."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    stack = Stack(directory, directory, (TENANT,), {"kms": port}, 1, json_protocol=True)
    (directory / "run").mkdir()
    create_pki(directory / "nsm")
    with ExitStack() as cleanup:
        ready = directory / "kms.ready"
        kms = ("infra.local_kms", "--config", str(provision.kms_config(stack)), "--ready-file", str(ready))
        cleanup.enter_context(process(directory, *kms))
        wait_for(ready.exists)
        listen = ("--listen", stack.enclave, "--nsm", str(directory / "nsm"))
        reach = ("--kms-port", str(port), "--ca", str(stack.kms_ca))
        cleanup.enter_context(process(directory, "infra.local_enclave", *listen, *reach))
        sock = cleanup.enter_context(connected(stack.enclave))
        unlock(sock, stack)
        yield Client(sock, prepare(stack))


@contextmanager
def process(directory: Path, module: str, *arguments: str) -> Iterator[None]:
    """Run a module as a process of its own."""
    with (directory / f"{module}.log").open("wb") as log:
        started = subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=REPOSITORY, stdout=log, stderr=log)
        try:
            yield
        finally:
            started.terminate()
            started.wait()


def connected(address: str) -> socket.socket:
    """Connect to an enclave that may still be starting."""
    give_up_s = time.monotonic() + START_S
    while True:
        try:
            return connect(parse_address(address), timeout_s=START_S)
        except OSError:
            assert time.monotonic() < give_up_s, "the enclave did not come up"
            time.sleep(0.02)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a process has come up."""
    give_up_s = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < give_up_s, "a process did not come up"
        time.sleep(0.02)


def unlock(sock: socket.socket, stack: Stack) -> None:
    """Do what the enclave agent does for a new boot."""
    service = provision.service_credentials(stack)
    access_key, secret_key = service["AWS_ACCESS_KEY_ID"], service["AWS_SECRET_ACCESS_KEY"]
    credentials = Credentials(access_key, secret_key, "", int(time.time()) + 3_600)
    hello = Hello(secrets.token_bytes(32), json=True)
    for op, request in (
        (Op.HELLO, enclave_protocol.hello_request(1, hello)),
        (Op.CREDENTIALS, enclave_protocol.credentials_request(2, credentials)),
    ):
        frames.send(sock, request)
        enclave_protocol.ensure_success(frames.recv(sock), op)


def prepare(stack: Stack) -> Work:
    """Make a key, one data key, and the jobs of a round: one tenant's, of one epoch, as a batch usually is."""
    key_arn = provision.create_key(stack, TENANT, pcrs()[0])
    context = {"mrgc:tenant": TENANT, "mrgc:use": "job"}
    made = provision.kms(stack, TENANT).generate_data_key(KeyId=key_arn, KeySpec="AES_256", EncryptionContext=context)
    now = int(time.time())
    jobs = []
    for number in range(JOBS):
        draft = JobDraft(
            tenant=TENANT,
            job=secrets.token_bytes(16),
            key_arn=key_arn,
            edk=made["CiphertextBlob"],
            context=context,
            model="all-minilm-l6-v2",
            type=JSON_TYPE,
            items=1 + number % 16,
            created=now - number % 8,
            expires=now + 86_400 - number % 8,
        )
        jobs.append(seal_job(draft, os.urandom(BODY_BYTES), data_key=made["Plaintext"]))
    body = json.dumps({"embeddings": [[0.125] * 580]}).encode().ljust(BODY_BYTES)
    return Work(key_arn, jobs, [parse_job(job).aad for job in jobs], body)


if __name__ == "__main__":
    sys.exit(main())
