"""The two operations that carry jobs: open_batch and seal_batch (docs/spec.md §2, §4, §6).

Every job has an outcome of its own, in order; one bad job never fails its batch mates. The checks run in the order of
docs/spec.md §2, so whatever public bytes can decide costs no KMS call, and nothing is released before the tag.

Called by `enclave.operations` and `enclave.json_protocol`. May import: the standard library, enclave, mrgc.errors,
mrgc.wire.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from enclave.attestation import Clock
from enclave.counters import Counters
from enclave.data_keys import DataKey, DataKeys, KeyWish
from enclave.key_cache import WrappedKey, wipe
from enclave.socket_errors import socket_error
from enclave.tickets import OPEN_PARENT, Tickets
from mrgc.errors import FormatError, MrgcError, TooLargeError, TrustFloorError, UnsupportedError
from mrgc.wire import enclave_protocol, frames
from mrgc.wire.enclave_protocol import Opened, SealRequest
from mrgc.wire.frames import Frame
from mrgc.wire.headers import JobHeader
from mrgc.wire.job_forms import FormedJob, JobCut, JobForm, JobForms, open_formed
from mrgc.wire.result_forms import ResultForms
from mrgc.wire.sealed import ensure_in_time
from mrgc.wire.strict_cbor import Buffer

MAX_ANSWER_BYTES: Final = frames.MAX_FRAME_BYTES
MAX_OUTCOME_BYTES: Final = 128  #: Of one job in an answer's header: at most 100 for its outcome, 5 for its size.
MAX_OUTCOMES_BYTES: Final = 256  #: Of the rest of an answer's header, and its lengths.

#: The data key of each form in a batch, or why its jobs have none.
Keys = Mapping[JobForm, DataKey]


class OneOpened(NamedTuple):
    """A job that passed every check, and the ticket to seal its result."""

    job: FormedJob
    ticket: bytes
    #: In a buffer that its owner zeroes.
    plaintext: bytearray

    def __repr__(self) -> str:
        return f"OneOpened(request={self.job.request.hex()}, plaintext of {len(self.plaintext)} bytes)"


class Batches:
    """Opens jobs and seals results for the open parent, trust tier 0.

    Args:
        data_keys: gives the keys of a batch.
        clock: the enclave's own.
        counters: gets jobs_opened, jobs_refused_<code>, results_sealed, open_batches and seal_batches.
    """

    def __init__(self, data_keys: DataKeys, clock: Clock, counters: Counters) -> None:
        self._data_keys = data_keys
        self._clock = clock
        self._counters = counters
        self._tickets = Tickets()
        self._forms = JobForms()
        self._result_forms = ResultForms(tier=OPEN_PARENT.tier)

    def open(self, frame: Frame) -> list[Buffer]:
        """Open sealed jobs.

        Returns:
            The response; its blobs are plaintexts in buffers that the caller zeroes after sending.

        Raises:
            FormatError: the request itself breaks docs/spec.md §6.
        """
        now_s = self._clock.now_s()
        blobs = enclave_protocol.parse_open_batch(frame)
        room = _Room(len(blobs))
        jobs = [_admit(blob, self._forms, now_s, room) for blob in blobs]
        with self._keys(job.cut.form for job in jobs if isinstance(job, FormedJob)) as keys:
            outcomes = [self._open_one(job, keys, now_s) if isinstance(job, FormedJob) else job for job in jobs]
        self._count(outcomes, open_batches=1, jobs_opened=sum(isinstance(o, Opened) for o in outcomes))
        return enclave_protocol.open_batch_response(frame.id, outcomes)

    def open_job(self, data: Buffer, *, tenant: str, key_arn: str) -> OneOpened:
        """Open one sealed job for a caller who has named its tenant and key (docs/spec.md §8).

        Raises:
            FormatError: the job breaks its form, or is of another tenant or key.
            MrgcError: any other code of a job of `open_batch`.
        """
        now_s = self._clock.now_s()
        try:
            job = _admitted(data, self._forms, now_s)
            header = job.cut.form.first
            if (header.tenant, header.key_arn) != (tenant, key_arn):
                raise FormatError("job is of another tenant or key than its request")
            with self._keys([job.cut.form]) as keys:
                plaintext, ticket = self._opened(job, keys, now_s)
        except MrgcError as error:
            self._count([socket_error(error)])
            raise
        self._count([], jobs_opened=1)
        return OneOpened(job, ticket, plaintext)

    def seal(self, frame: Frame) -> list[Buffer]:
        """Seal results of jobs that this boot has opened.

        Raises:
            FormatError: the request itself breaks docs/spec.md §6.
        """
        now_s = self._clock.now_s()
        outcomes = self._seal_all(enclave_protocol.parse_seal_batch(frame), now_s)
        self._counters.add(seal_batches=1)
        return enclave_protocol.seal_batch_response(frame.id, outcomes)

    def seal_result(self, request: SealRequest) -> bytes:
        """Seal one result.

        Raises:
            MrgcError: any outcome of a result of `seal_batch` but success.
        """
        (outcome,) = self._seal_all([request], self._clock.now_s())
        if isinstance(outcome, MrgcError):
            raise outcome
        return outcome

    def _seal_all(self, requests: Sequence[SealRequest], now_s: float) -> list[bytes | MrgcError]:
        jobs = [self._authentic(request, now_s) for request in requests]
        with self._keys(job.form for job in jobs if isinstance(job, JobCut)) as keys:
            room = _Room(len(requests))
            outcomes = [
                self._seal_one(request, job, keys, room, now_s) if isinstance(job, JobCut) else job
                for request, job in zip(requests, jobs, strict=True)
            ]
        self._count(outcomes, results_sealed=sum(isinstance(o, bytes) for o in outcomes))
        return outcomes

    def _open_one(self, job: FormedJob, keys: Keys, now_s: float) -> Opened | MrgcError:
        try:
            plaintext, ticket = self._opened(job, keys, now_s)
        except MrgcError as error:
            return socket_error(error)
        return Opened(job.request, ticket, plaintext)

    def _opened(self, job: FormedJob, keys: Keys, now_s: float) -> tuple[bytearray, bytes]:
        key = keys[job.cut.form]
        if isinstance(key, MrgcError):
            raise key
        plaintext = open_formed(job, data_key=key)
        return plaintext, self._tickets.issue(OPEN_PARENT, request=job.request, aad=job.aad, now_s=now_s)

    def _seal_one(self, result: SealRequest, job: JobCut, keys: Keys, room: _Room, now_s: float) -> bytes | MrgcError:
        key = keys[job.form]
        if isinstance(key, MrgcError):
            return socket_error(key)
        try:
            sealed = self._result_forms.seal(result, job, created=int(now_s), data_key=key)
            room.take(len(sealed))
        except MrgcError as error:
            return socket_error(error)
        return sealed

    def _authentic(self, result: SealRequest, now_s: float) -> JobCut | MrgcError:
        """Return the job that the result is of, which this boot has opened."""
        try:
            self._tickets.ensure_valid(result.ticket, OPEN_PARENT, request=result.request, aad=result.aad, now_s=now_s)
            return self._forms.parse_aad(result.aad)
        except MrgcError as error:
            return socket_error(error)

    @contextmanager
    def _keys(self, forms: Iterable[JobForm]) -> Iterator[Keys]:
        """Give the key, or the refusal, of each form, and zero the keys afterwards."""
        # A batch has few forms: one look-up for each of them, not for each job.
        uses = Counter(forms)
        wishes = [KeyWish(_wrapped_key(form.first), count) for form, count in uses.items()]
        keys = dict(zip(uses, self._data_keys.obtain(wishes), strict=True))
        try:
            yield keys
        finally:
            for key in keys.values():
                if isinstance(key, bytearray):
                    wipe(key)

    def _count(self, outcomes: Sequence[object], **amounts: int) -> None:
        refusals = Counter(f"jobs_refused_{o.code}" for o in outcomes if isinstance(o, MrgcError))
        self._counters.add(**amounts, **refusals)


class _Room:
    """What an answer's frame has left for bodies."""

    def __init__(self, jobs: int) -> None:
        self._left = MAX_ANSWER_BYTES - MAX_OUTCOMES_BYTES - jobs * MAX_OUTCOME_BYTES

    def take(self, count: int) -> None:
        """Reserve `count` bytes. Raises TooLargeError when the answer would not fit its frame."""
        if count > self._left:
            raise TooLargeError("answer would not fit its frame")
        self._left -= count


def _admit(data: memoryview, forms: JobForms, now_s: float, room: _Room) -> FormedJob | MrgcError:
    try:
        job = _admitted(data, forms, now_s)
        room.take(job.cut.body_bytes)
    except MrgcError as error:
        return socket_error(error)
    return job


def _admitted(data: Buffer, forms: JobForms, now_s: float) -> FormedJob:
    """Checks (1) to (3) of docs/spec.md §2: public bytes only."""
    job = forms.parse_job(data)
    ensure_in_time(job.cut, now_s)
    _ensure_servable(job.cut.form.first)
    return job


def _ensure_servable(header: JobHeader) -> None:
    # `hosts` needs a floor of at least 1, so the floor answers for it as well.
    if header.floor > OPEN_PARENT.tier:
        raise TrustFloorError("job demands a higher trust tier")
    if header.receipt is not None:
        raise UnsupportedError("receipts are not made")


def _wrapped_key(header: JobHeader) -> WrappedKey:
    # The header was in canonical form, so equal contexts have equal order.
    return WrappedKey(header.tenant, header.key_arn, header.edk, tuple(header.context.items()))
