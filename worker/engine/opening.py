"""First stage: sealed jobs in, rows of token ids out.

Open at the enclave, parse the payload, find the model, tokenise. Every job ends as a `Job` or as the error that the
intake gets; a job whose payload or model is wrong becomes a `Job` with a failure, because its tenant has to be told in
a sealed result. Texts live here for the length of one call, as long as Python keeps them.

May import: the standard library, numpy, mrgc, worker.engine, worker.models.base. Called by worker.engine.pipeline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from mrgc.errors import EnclaveBusy, FormatError, InputTooLong, ModelError, MrgcError, ResultTooLarge
from mrgc.wire import frames, sealed
from worker.engine import payload, results
from worker.engine.jobs import Job, Row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mrgc.wire.enclave_protocol import Opened
    from mrgc.wire.strict_cbor import Buffer
    from worker.engine.enclave_client import EnclaveClient
    from worker.engine.jobs import Batch
    from worker.engine.payload import Payload
    from worker.models.base import Model, Tokens
    from worker.models.registry import Registry

#: What the results of one batch may take: one frame. Bounds the embeddings that a few kilobytes of inputs ask for.
MAX_ANSWER_BYTES: Final = frames.MAX_FRAME_BYTES - frames.MAX_HEADER_BYTES


class Opener:
    """Opens job batches.

    Args:
        client: this stage's own connection to the enclave.
        registry: models that may be asked for.
        max_body_bytes: the deployment's cap on payloads and results.
    """

    def __init__(self, client: EnclaveClient, registry: Registry, *, max_body_bytes: int) -> None:
        self.client = client
        self._registry = registry
        self._max_body_bytes = max_body_bytes

    def open(self, batch: Batch) -> dict[Model, list[Row]]:
        """Open a batch: fill `batch.jobs` and `batch.pending_rows`.

        Returns:
            The rows to be run, by model; empty if no job needs the forward stage.
        """
        batch.jobs = [self._parse(blob) for blob in batch.blobs]
        parsed = [(place, job) for place, job in enumerate(batch.jobs) if isinstance(job, Job)]
        wanted: dict[Model, list[tuple[Job, Payload]]] = {}
        room_bytes = MAX_ANSWER_BYTES
        for (place, job), outcome in zip(parsed, self._open_all([job for _, job in parsed]), strict=True):
            if isinstance(outcome, MrgcError):
                batch.jobs[place] = outcome
                continue
            job.ticket = outcome.ticket
            model, asked = self._read(job, outcome.plaintext)
            if model is None or asked is None:
                continue
            room_bytes -= results.least_bytes(len(asked.inputs), model.dimensions, accept=asked.accept)
            if room_bytes < 0:
                batch.jobs[place] = EnclaveBusy("results of this batch would not fit one answer")
                continue
            wanted.setdefault(model, []).append((job, asked))
        rows = {model: _tokenise(batch, model, asked) for model, asked in wanted.items()}
        batch.pending_rows = sum(map(len, rows.values()))
        return {model: of_model for model, of_model in rows.items() if of_model}

    def _parse(self, blob: memoryview) -> Job | MrgcError:
        try:
            return Job(blob, sealed.parse_job(blob, max_body_bytes=self._max_body_bytes))
        except FormatError as error:
            return error

    def _open_all(self, jobs: Sequence[Job]) -> list[Opened | MrgcError]:
        try:
            return self.client.open_batch([job.blob for job in jobs]) if jobs else []
        except MrgcError as error:
            return [error] * len(jobs)

    def _read(self, job: Job, plaintext: Buffer) -> tuple[Model | None, Payload | None]:
        """Find what the job asks of which model, or note its failure as a whole. Zeroes the plaintext."""
        header = job.sealed.header
        try:
            job.model = self._registry.find(header.model)
            asked = payload.parse(plaintext, content_type=header.type, items=header.items)
            job.accept = asked.accept
            least_bytes = results.least_bytes(header.items, job.model.dimensions, accept=asked.accept)
            if least_bytes > self._max_body_bytes:
                raise ResultTooLarge("result cannot be below the body cap")
        except ModelError as error:
            job.fail(error)
            return job.model, None
        finally:
            wipe(plaintext)
        return job.model, asked


def wipe(buffer: Buffer) -> None:
    """Zero a buffer that received plaintext; received buffers are views into bytearrays."""
    memoryview(buffer)[:] = bytes(len(buffer))


def _tokenise(batch: Batch, model: Model, asked: Sequence[tuple[Job, Payload]]) -> list[Row]:
    """Tokenise the inputs of all jobs of one model in one call; inputs that fail are noted in their job."""
    tokens = iter(model.tokenise([text for _, payload_ in asked for text in payload_.inputs]))
    rows = []
    for job, payload_ in asked:
        job.embeddings = np.zeros((len(payload_.inputs), model.dimensions), dtype=np.float32)
        for place in range(len(payload_.inputs)):
            outcome = _judged(next(tokens), truncate=payload_.truncate)
            if isinstance(outcome, ModelError):
                job.errors[place] = outcome
            else:
                rows.append(Row(batch, job, place, outcome.ids))
    return rows


def _judged(outcome: Tokens | ModelError, *, truncate: bool) -> Tokens | ModelError:
    if isinstance(outcome, ModelError) or truncate or not outcome.is_cut:
        return outcome
    return InputTooLong("input is over the model's token limit")
