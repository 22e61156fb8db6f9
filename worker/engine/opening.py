"""First stage: sealed jobs in, rows of token ids out.

Open at the enclave, parse the payload, find the model, tokenise. Every job ends as a `Job` or as the error that the
intake gets; a job whose payload or model is wrong becomes a `Job` with a failure, because its tenant has to be told in
a sealed result. Texts live here for the length of one call, as long as Python keeps them.

May import: the standard library, mrgc, worker.engine, worker.models. Called by worker.engine.pipeline.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, Final, NamedTuple

from mrgc.errors import EnclaveBusy, FormatError, InputTooLong, ModelError, MrgcError, PayloadError, ResultTooLarge
from mrgc.wire import frames
from mrgc.wire.job_forms import JobForms
from worker.engine import payload
from worker.engine.jobs import Job, Row
from worker.models.token_ids import read_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from mrgc.wire.enclave_protocol import Opened
    from mrgc.wire.strict_cbor import Buffer
    from worker.engine.enclave_client import EnclaveClient
    from worker.engine.jobs import Batch
    from worker.engine.payload import Payload
    from worker.models.base import Answer, Model, Tokens
    from worker.models.registry import Registry

    Tokenise = Callable[[Model, Sequence[object]], list[Tokens | ModelError]]

#: What the results of one batch may take: one frame. Bounds the answers that a few kilobytes of inputs ask for.
MAX_ANSWER_BYTES: Final = frames.MAX_FRAME_BYTES - frames.MAX_HEADER_BYTES


class _Asked(NamedTuple):
    """A job that was read."""

    #: Among the jobs of its batch.
    slot: int
    job: Job
    answer: Answer
    payload: Payload


class Opener:
    """Opens job batches.

    Args:
        client: this stage's own connection to the enclave.
        registry: models that may be asked for.
        max_body_bytes: the deployment's cap on payloads and results.
        tokenise: does what a model's own `tokenise` does, perhaps elsewhere.
    """

    def __init__(
        self, client: EnclaveClient, registry: Registry, *, max_body_bytes: int, tokenise: Tokenise | None = None
    ) -> None:
        self.client = client
        self._registry = registry
        self._max_body_bytes = max_body_bytes
        self._forms = JobForms(max_body_bytes)
        self._run_tokeniser: Tokenise = tokenise or (lambda model, inputs: model.tokenise(inputs))

    def open(self, batch: Batch) -> dict[Model, list[Row]]:
        """Open a batch: fill `batch.jobs` and `batch.pending_rows`.

        Returns:
            The rows to be run, by model; empty if no job needs the forward stage.
        """
        batch.jobs = [self._parse(blob) for blob in batch.blobs]
        parsed = [(index, job) for index, job in enumerate(batch.jobs) if isinstance(job, Job)]
        wanted: dict[Model, list[_Asked]] = {}
        for (index, job), outcome in zip(parsed, self._open_all([job for _, job in parsed]), strict=True):
            if isinstance(outcome, MrgcError):
                batch.jobs[index] = outcome
                continue
            job.ticket = outcome.ticket
            model, asked = self._read(index, job, outcome.plaintext)
            if model is not None and asked is not None:
                wanted.setdefault(model, []).append(asked)
        rows = self._admit(batch, wanted)
        batch.pending_rows = sum(map(len, rows.values()))
        return {model: of_model for model, of_model in rows.items() if of_model}

    def _parse(self, blob: memoryview) -> Job | MrgcError:
        try:
            return Job(blob, self._forms.parse_sealed(blob))
        except FormatError as error:
            return error

    def _open_all(self, jobs: Sequence[Job]) -> list[Opened | MrgcError]:
        try:
            return self.client.open_batch([job.blob for job in jobs]) if jobs else []
        except MrgcError as error:
            return [error] * len(jobs)

    def _read(self, index: int, job: Job, plaintext: Buffer) -> tuple[Model | None, _Asked | None]:
        """Find what the job asks of which model, or note its failure as a whole. Zeroes the plaintext."""
        header = job.sealed.header
        try:
            job.model = self._registry.find(header.model)
            parsed = payload.parse(plaintext, content_type=header.type, items=header.items)
            job.items, job.accept = header.items, parsed.accept
            job.answer = answer = job.model.answer(header.items, parsed.parameters)
            asked = _Asked(index, job, answer, parsed)
            self._least_bytes(asked)
        except ModelError as error:
            job.fail(error)
            return job.model, None
        finally:
            wipe(plaintext)
        return job.model, asked

    def _admit(self, batch: Batch, wanted: dict[Model, list[_Asked]]) -> dict[Model, list[Row]]:
        """Tokenise, and keep the rows of jobs whose results can fit: what cannot is known before the forward pass."""
        room_bytes = MAX_ANSWER_BYTES
        rows: dict[Model, list[Row]] = {model: [] for model in wanted}
        for model, of_model in wanted.items():
            for asked, of_job in zip(of_model, self._tokenise(batch, model, of_model), strict=True):
                try:
                    room_bytes -= self._least_bytes(asked)
                except ResultTooLarge as error:
                    asked.job.fail(error)
                if room_bytes < 0:
                    batch.jobs[asked.slot] = EnclaveBusy("results of this batch would not fit one answer")
                elif not asked.job.failure:
                    rows[model] += of_job
        return rows

    def _tokenise(self, batch: Batch, model: Model, asked: Sequence[_Asked]) -> Iterator[list[Row]]:
        """Tokenise all jobs of one model in one call; yield the rows of each, its failures noted in it."""
        outcomes = iter(self._run_tokeniser(model, [text for each in asked for text in _texts(each)]))
        for each in asked:
            of_texts = islice(outcomes, len(_texts(each)))
            ids = each.payload.ids
            of_ids = (read_ids(value, ids, model) for value in each.payload.inputs) if ids else ()
            yield list(_rows(batch, each, chain(of_ids, of_texts)))

    def _least_bytes(self, asked: _Asked) -> int:
        least_bytes = asked.answer.least_bytes(asked.payload.accept)
        if least_bytes > self._max_body_bytes:
            raise ResultTooLarge("result cannot be below the body cap")
        return least_bytes


def wipe(buffer: Buffer) -> None:
    """Zero a buffer that received plaintext; received buffers are views into bytearrays."""
    memoryview(buffer)[:] = bytes(len(buffer))


def _texts(asked: _Asked) -> list[object]:
    """Return what is to be tokenised, in the order of its places: the last of them if the inputs are ids."""
    return [*asked.answer.extras] if asked.payload.ids else [*asked.payload.inputs, *asked.answer.extras]


def _rows(batch: Batch, asked: _Asked, outcomes: Iterable[Tokens | ModelError]) -> Iterator[Row]:
    for place, tokenised in enumerate(outcomes):
        is_extra = place >= asked.job.items
        outcome = _judged(tokenised, truncate=asked.payload.truncate and not is_extra)
        if not isinstance(outcome, ModelError):
            asked.answer.expect(place, outcome)
            yield Row(batch, asked.job, asked.answer, place, outcome.ids)
        elif is_extra:
            asked.job.fail(PayloadError("payload has a parameter with a text that the model cannot take"))
        else:
            asked.job.errors[place] = outcome


def _judged(outcome: Tokens | ModelError, *, truncate: bool) -> Tokens | ModelError:
    if isinstance(outcome, ModelError) or truncate or not outcome.is_cut:
        return outcome
    return InputTooLong("input is over the model's token limit")
