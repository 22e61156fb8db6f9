"""One GPU host for the engine's tests: a real KMS process, the product's enclave, real jobs, real engines."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from infra.local_nsm import LocalNsm
from mrgc.errors import MrgcError
from mrgc.wire import frames
from mrgc.wire.addresses import UnixAddress, connect
from mrgc.wire.headers import ResultHeader
from mrgc.wire.sealed import open_result, parse_job, parse_result
from mrgc.wire.strict_cbor import Buffer
from tests.enclave.stack import PCRS, REPOSITORY, TOKEN, Caller, DataKey, Kms, RunningEnclave
from tests.waiting import until
from worker import engine_protocol
from worker.engine_protocol import Health, Served
from worker.token_file import write_token

MODEL: Final = "tiny-bert"
START_S: Final = 60.0


class Host:
    """Boots enclaves at one address, and seals jobs for them."""

    def __init__(self, directory: Path, pki: Path, kms: Kms, data_key: DataKey) -> None:
        self._nsm = LocalNsm(pki, PCRS)
        self._kms = kms
        self._running: RunningEnclave | None = None
        self.data_key = data_key
        self.enclave = UnixAddress(directory / "enclave.sock")
        self.token_file = directory / "token"

    def boot(self, *, with_agent: bool = True) -> str:
        """Boot an enclave, in place of the one that runs; return its boot id."""
        self.shut_down()
        self._running = RunningEnclave(self.enclave.path, self._nsm, self._kms)
        if with_agent:
            self.act_as_agent()
        with self._running.caller() as caller:
            return caller.health().boot

    def act_as_agent(self, token: bytes = TOKEN) -> None:
        """Write the token file, say the first hello, push credentials."""
        assert self._running is not None
        write_token(self.token_file, token)
        with self._running.caller() as caller:
            assert caller.hello(token) is None
            assert caller.credentials() is None

    @contextlib.contextmanager
    def caller(self) -> Iterator[Caller]:
        """Speak to the enclave as another of its peers."""
        assert self._running is not None
        with self._running.serving() as caller:
            yield caller

    def shut_down(self) -> None:
        """Stop the enclave, its connections included."""
        if self._running is not None:
            self._running.stop()
            self._running = None

    def job(
        self, inputs: Sequence[object] = ("x",), *, parameters: dict[str, Any] | None = None, **changes: Any
    ) -> bytes:
        """Seal one job for the tiny model; `changes` go into its header."""
        payload: dict[str, Any] = {"inputs": list(inputs)}
        if parameters is not None:
            payload["parameters"] = parameters
        return self.sealed(json.dumps(payload).encode(), **({"items": len(inputs)} | changes))

    def sealed(self, payload: bytes, **changes: Any) -> bytes:
        """Seal any payload."""
        return self.data_key.job(payload, **({"model": MODEL} | changes))

    def result(self, job: Buffer, outcome: Served | MrgcError) -> tuple[ResultHeader, bytes]:
        """Open the sealed result of a job as its tenant does."""
        assert isinstance(outcome, Served), outcome
        parsed = parse_result(outcome.result)
        assert parsed.header.request == parse_job(job).request
        assert parsed.header.status == outcome.status
        return parsed.header, bytes(open_result(parsed, data_key=self.data_key.plaintext))

    def embeddings(self, job: Buffer, outcome: Served | MrgcError) -> NDArray[np.float32]:
        """Open the JSON result of a job of which no input failed."""
        header, body = self.result(job, outcome)
        assert header.status == "ok", body
        return np.array(json.loads(body)["embeddings"], dtype=np.float32)

    def codes(self, job: Buffer, outcome: Served | MrgcError) -> list[str]:
        """Open the JSON result of a job and return the codes in it."""
        _, body = self.result(job, outcome)
        return [error["code"] for error in json.loads(body)["errors"]]


class Intake:
    """Speaks to an engine as the intake does, over one connection."""

    def __init__(self, path: Path) -> None:
        self.sock = connect(UnixAddress(path), timeout_s=30)
        self._id = 0
        try:
            self.ready = engine_protocol.parse_ready(frames.recv(self.sock))
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, jobs: Sequence[Buffer]) -> int:
        """Send one batch; return its id."""
        self._id += 1
        frames.send(self.sock, engine_protocol.run_request(self._id, MODEL, jobs))
        return self._id

    def receive(self, batches: dict[int, int]) -> dict[int, list[Served | MrgcError]]:
        """Read one answer for each batch, given as id → number of jobs, in whatever order they come."""
        answers: dict[int, list[Served | MrgcError]] = {}
        while len(answers) < len(batches):
            frame = frames.recv(self.sock)
            assert frame.id not in answers
            answers[frame.id] = engine_protocol.parse_outcomes(frame, batches[frame.id])
        return answers

    def run(self, jobs: Sequence[Buffer]) -> list[Served | MrgcError]:
        """Send one batch and wait for its outcomes."""
        sent = self.send(jobs)
        return self.receive({sent: len(jobs)})[sent]

    def health(self) -> Health:
        """Ask for health."""
        frames.send(self.sock, engine_protocol.health_request(99))
        return engine_protocol.parse_health(frames.recv(self.sock))


class EngineProcess:
    """A `python -m worker.engine` of our own."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.path = directory / "engine.sock"
        self.log = directory / "engine.log"
        environ = {"PATH": os.environ["PATH"], "MRGC_ENGINE": f"unix:{self.path}", "MRGC_THREADS": "1"} | settings
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker.engine"], cwd=REPOSITORY, env=environ, stdout=log, stderr=log
            )

    def listening(self) -> Self:
        """Wait until it accepts connections, or fail with its log."""

        def accepts() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError), Intake(self.path):
                return True
            return False

        until(accepts, within_s=START_S, what="the engine listens")
        return self

    def healthy(self) -> Self:
        """Wait until a job would be served."""
        with Intake(self.path) as intake:
            until(lambda: intake.health().status == engine_protocol.HEALTHY, within_s=START_S, what="healthy")
        return self

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        """End the process at the end of the block."""
        try:
            yield self
        finally:
            self.process.kill()
            self.process.wait(10)
