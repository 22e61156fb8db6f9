"""The tenant's client: seal and send jobs, wait for results, open them. The command line is a thin shell around it.

    texts ──payload──► sealed job ──record, then queue──► …service… ──object──► compare ──► open ──► body

A `Client` serves one thread at a time; make one per thread. It holds plain data keys in memory until `close`, which
zeroes them, and writes nothing to disk but the public record of submitted jobs.

May import: mrgc. Nothing of the service.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Self

from mrgc.client_parts import ClientParts, Clock
from mrgc.client_settings import ClientSettings
from mrgc.errors import ConfigError, ResultMissing, ResultRefused, TooLargeError
from mrgc.inputs import DEFAULT_ITEMS_PER_JOB
from mrgc.job_queue import MAX_INLINE_BYTES, ClaimCheck, batches
from mrgc.payloads import Input, JobOptions, encode_payload
from mrgc.result_store import CONCURRENT_READS
from mrgc.results import (
    MAX_HINT_BYTES,
    MAX_RESULT_BYTES,
    OpenedResult,
    hint_name,
    job_of,
    object_name,
    open_result_of,
    read_hint,
)
from mrgc.standalone import OpenedStandalone, open_standalone_of
from mrgc.submitted import SubmittedJob
from mrgc.waiting import LookSchedule, Outcome, State, wait_for
from mrgc.wire.headers import JOB_BYTES
from mrgc.wire.sealed import JobDraft, parse_job, seal_job
from mrgc.wire.strict_cbor import Buffer


class Client:
    """One tenant's access to the service.

    Nothing is connected or opened before it is needed: opening a fetched result needs KMS and the records, not the
    queue.

    Args:
        settings: who, which key, where.
        clock: time.
    """

    def __init__(self, settings: ClientSettings, *, clock: Clock | None = None) -> None:
        self.settings = settings
        self._clock = clock or Clock()
        self._parts = ClientParts(settings, self._clock)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Make a client from MRGC_* and AWS_* variables.

        Raises:
            ConfigError: a variable is missing or malformed.
        """
        return cls(ClientSettings.from_env(environ))

    # --- submitting -------------------------------------------------------------------------------------------

    def submit(
        self, texts: Iterable[Input], *, options: JobOptions | None = None, items_per_job: int = DEFAULT_ITEMS_PER_JOB
    ) -> list[SubmittedJob]:
        """Send inputs, `items_per_job` to a job, in order.

        Args:
            texts: the inputs: texts, or token ids as a sequence of integers for each; not both in one job.
            options: model, lifetime and so on; by default the configured model's defaults.
            items_per_job: inputs per job, 1..16,384.

        Returns:
            The jobs in order.

        Raises:
            FormatError: see `seal`.
            ConfigError, KeyAccessError, KeyBusyError, TooLargeError, QueueUnavailable: see `submit_many`.
        """
        remaining = iter(texts)
        return list(self.submit_many(iter(lambda: list(islice(remaining, items_per_job)), []), options=options))

    def submit_many(
        self, jobs: Iterable[Sequence[Input]], *, options: JobOptions | None = None
    ) -> Iterator[SubmittedJob]:
        """Seal and send jobs as they come, 64 in a round trip.

        Args:
            jobs: the inputs of each job, 1..16,384.
            options: as in `submit`.

        Yields:
            Each job once the broker has confirmed it.

        Raises:
            ConfigError: a setting that sending needs is missing or wrong.
            KeyAccessError, KeyBusyError: KMS gives no data key.
            TooLargeError: a sealed job fits neither the queue nor, for want of an S3 bucket, a claim check.
            QueueUnavailable, StoreUnavailable: as in `send`.
        """
        chosen = options or JobOptions(self.settings.model)
        return self.send(self.seal(texts, chosen) for texts in jobs)

    def seal(self, texts: Sequence[Input], options: JobOptions) -> bytes:
        """Seal one job under the epoch's data key; nothing is recorded or sent.

        Raises:
            FormatError: no input, too many, or one that no payload can hold.
            KeyAccessError, KeyBusyError, ConfigError, TooLargeError: see `submit_many`.
        """
        payload = encode_payload(texts, options)
        epoch = self._parts.keys.for_sealing()
        created = int(self._clock.now())
        draft = JobDraft(
            tenant=self.settings.tenant,
            job=os.urandom(JOB_BYTES),
            key_arn=self.settings.key_arn,
            edk=epoch.edk,
            context=dict(self._parts.keys.context),
            model=options.model,
            type=payload.type,
            items=len(texts),
            created=created,
            expires=created + options.lifetime_s,
            floor=options.floor,
        )
        sealed = seal_job(draft, payload.body, data_key=epoch.data_key)
        if len(sealed) > MAX_INLINE_BYTES and not self._parts.store.takes_uploads:
            raise TooLargeError(
                f"a sealed job of {len(sealed)} bytes needs an s3:// bucket in MRGC_RESULTS_URL to travel through; "
                f"without one a job has at most {MAX_INLINE_BYTES} bytes"
            )
        return sealed

    def send(self, sealed_jobs: Iterable[bytes]) -> Iterator[SubmittedJob]:
        """Record and enqueue sealed jobs, in order.

        A job is on record before it is enqueued. Sending a sealed job twice is harmless: it has one result.

        Args:
            sealed_jobs: as `seal` made them; taken a batch at a time.

        Yields:
            Each job once the broker has confirmed it.

        Raises:
            QueueUnavailable: the broker did not confirm; the jobs yielded are sent, up to 64 more may be.
            StoreUnavailable: a long job could not be uploaded.
            ConfigError: the record cannot be written.
        """
        for batch in batches(sealed_jobs):
            jobs = [SubmittedJob.of(parse_job(sealed)) for sealed in batch]
            self._parts.records.add(jobs)
            self._parts.queue.send([self._message(job, sealed) for job, sealed in zip(jobs, batch, strict=True)])
            yield from jobs

    # --- results ----------------------------------------------------------------------------------------------

    def find(self, job_id: str) -> SubmittedJob:
        """Look up the record of a job by its id, 32 hex digits.

        Raises:
            ConfigError: it was not submitted with this MRGC_STATE, or by another tenant.
        """
        try:
            job = self._parts.records.find(bytes.fromhex(job_id))
        except ValueError:
            job = None
        if job is None or job.tenant != self.settings.tenant:
            raise ConfigError(f"no record of job {job_id} in {self.settings.state} (MRGC_STATE)")
        return job

    def wait(self, jobs: Iterable[SubmittedJob], *, timeout_s: float | None = None) -> Iterator[Outcome]:
        """Wait until every job has ended, at its `expires` at the latest.

        The object store is looked at, sooner when the queue is at Redis and its notices name a job.

        Args:
            jobs: what to wait for.
            timeout_s: give up after so many seconds.

        Yields:
            One outcome per job, as they come; its result is authentic.

        Raises:
            KeyAccessError, KeyBusyError, StoreUnavailable, ConfigError: results cannot be read now.
        """
        deadline_s = float("inf") if timeout_s is None else self._clock.now() + timeout_s
        schedule = LookSchedule(jobs, deadline_s=deadline_s)
        return wait_for(schedule, self._look, now=self._clock.now, rest=self._parts.rest(schedule))

    def fetch(self, job: SubmittedJob) -> bytes:
        """Read a job's stored result, still sealed and not yet verified.

        Raises:
            ResultMissing: there is none (yet).
            ResultRefused: what is stored cannot be a result.
            StoreUnavailable: the store does not answer.
        """
        data = next(self.fetch_many([job]))[1]
        if data is None:
            raise ResultMissing(f"job {job.id} has no result")
        return data

    def fetch_many(self, jobs: Iterable[SubmittedJob]) -> Iterator[tuple[SubmittedJob, bytes | None]]:
        """Read stored results, several at once.

        Yields:
            Each job in order, with its sealed result or None.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        remaining = iter(jobs)
        while window := list(islice(remaining, CONCURRENT_READS)):
            found = self._parts.store.read([object_name(job) for job in window], max_bytes=MAX_RESULT_BYTES)
            yield from zip(window, found, strict=True)

    def open(self, data: Buffer, *, job: SubmittedJob | None = None) -> OpenedResult:
        """Verify a sealed result against the record of its job, and decrypt it.

        Args:
            data: a stored object.
            job: which job's result it must be. Without it, it may be any job's on record: the caller then learns
                from the returned job which one, and must not assume.

        Raises:
            ResultRefused: it is not the authentic result of that job.
            KeyAccessError, KeyBusyError, ConfigError: the data key cannot be had.
        """
        if job is None:
            job = self._parts.records.find(job_of(data))
            if job is None or job.tenant != self.settings.tenant:
                raise ResultRefused(f"no record of the result's job in {self.settings.state} (MRGC_STATE)")
        return open_result_of(job, data, key_arn=self.settings.key_arn, data_key_for=self._parts.keys.for_opening)

    def open_standalone(self, data: Buffer) -> OpenedStandalone:
        """Open an answer of the JSON protocol to a bare ciphertext. It belongs to no job on record.

        Raises:
            ResultRefused: it is none, of another tenant or key, or does not authenticate.
            KeyAccessError, KeyBusyError, ConfigError: the data key cannot be had.
        """
        settings = self.settings
        return open_standalone_of(
            data, tenant=settings.tenant, key_arn=settings.key_arn, unwrap=self._parts.kms.decrypt
        )

    @property
    def kms_calls(self) -> int:
        """Calls made to KMS so far."""
        return self._parts.kms_calls

    def close(self) -> None:
        """Zero the data keys and close every connection."""
        self._parts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _message(self, job: SubmittedJob, sealed: bytes) -> bytes | ClaimCheck:
        if len(sealed) <= MAX_INLINE_BYTES:
            return sealed
        url = self._parts.store.upload(job.tenant, job.request.hex(), sealed)
        return ClaimCheck(url, job.request, len(sealed))

    def _look(self, jobs: Sequence[SubmittedJob]) -> list[Outcome | None]:
        """Look once for the results of some jobs and, where there is none, for hints."""
        outcomes = {job.job: self._judge(job, data) for job, data in self.fetch_many(jobs) if data is not None}
        missing = [job for job in jobs if job.job not in outcomes]
        hints = self._parts.store.read([hint_name(job) for job in missing], max_bytes=MAX_HINT_BYTES)
        refused = {job.job: code for job, data in zip(missing, hints, strict=True) if (code := read_hint(data or b""))}
        # A real result always wins, also one that came between the two looks.
        hinted = [job for job in missing if job.job in refused]
        for job, data in self.fetch_many(hinted):
            outcomes[job.job] = (
                Outcome(job, State.REFUSED, refused[job.job]) if data is None else self._judge(job, data)
            )
        return [outcomes.get(job.job) for job in jobs]

    def _judge(self, job: SubmittedJob, data: bytes) -> Outcome:
        try:
            result = self.open(data, job=job)
            return Outcome(job, State(result.status), result.failure, result)
        except ResultRefused as error:
            return Outcome(job, State.NOT_AUTHENTIC, error.code)
