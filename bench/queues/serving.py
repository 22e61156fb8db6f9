"""The work of a job in one process, for the arrangements that have no engine: open → null model → seal → store.

The product's own code for every step, called directly: no socket between intake and engine, no admission, no registry,
no allocator that erases what it frees. So whatever the peers lose, they do not lose it here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.queues.null_engine import NullModel
from mrgc.errors import MrgcError
from mrgc.wire.addresses import parse_address
from mrgc.wire.sealed import MAX_BODY_BYTES
from worker.engine.enclave_client import EnclaveClient
from worker.engine.forwarding import forward
from worker.engine.jobs import Batch, Job
from worker.engine.opening import Opener
from worker.engine.sealing import Sealer
from worker.engine_protocol import Served
from worker.models.registry import Registry
from worker.object_store import NewObject, ObjectStore


class Serving:
    """Serves batches of sealed jobs; owned by one thread.

    Args:
        environ: MRGC_ENCLAVE, MRGC_TOKEN_FILE and MRGC_RESULTS_URL.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address, token_file = parse_address(environ["MRGC_ENCLAVE"]), Path(environ["MRGC_TOKEN_FILE"])
        opening, sealing = (EnclaveClient(address, token_file) for _ in range(2))
        self._opener = Opener(opening, Registry([NullModel()]), max_body_bytes=MAX_BODY_BYTES)
        self._sealer = Sealer(sealing, max_body_bytes=MAX_BODY_BYTES)
        self._prefix = environ["MRGC_RESULTS_URL"]
        self._store = ObjectStore()
        self._loop = asyncio.new_event_loop()

    def serve(self, jobs: Sequence[bytes]) -> None:
        """Serve one batch; returns when every result is stored as safely as the intake stores it.

        Raises:
            MrgcError: a job was not served; nothing of the batch may be acknowledged.
        """
        batch = Batch([memoryview(job) for job in jobs], lambda _outcomes: None)
        for model, rows in self._opener.open(batch).items():
            forward(model, rows)
        urls = [self._url(job) for job in batch.jobs]
        outcomes = self._sealer.seal(batch)
        for outcome in outcomes:
            if isinstance(outcome, MrgcError):
                raise outcome
        results = [outcome.result for outcome in outcomes if isinstance(outcome, Served)]
        for error in self._loop.run_until_complete(self._store.create(list(map(NewObject, urls, results)))):
            if error is not None:
                raise error

    def _url(self, job: Job | MrgcError) -> str:
        if isinstance(job, MrgcError):
            raise job
        header = job.sealed.header
        return f"{self._prefix}{header.tenant}/{header.job.hex()}/{job.sealed.request.hex()}.mrgc"
