"""Sealed jobs, read by their forms.

The jobs of one tenant and epoch have headers of one form: they differ in job, salt, commit, items, created and expires
only. The first of a form is parsed in full; the others are compared with it, byte for byte, outside these fields, and
the numbers among them are held to docs/spec.md §2. Whatever does not fit a form is parsed in full, so nothing is
accepted or refused here that `mrgc.wire.sealed.parse_job` would not accept or refuse. What is remembered is public.

Called by `enclave.batches`, `worker.admission`, `worker.engine.opening`, `mrgc.wire.result_forms`. May import: the
standard library, mrgc.wire.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final, NamedTuple

from mrgc.wire.aad_template import AadTemplate, read_uint
from mrgc.wire.bounded_map import BoundedMap
from mrgc.wire.headers import JobHeader, ensure_job_numbers
from mrgc.wire.sealed import (
    MAX_BODY_BYTES,
    PREFIX,
    TAG_BYTES,
    SealedJob,
    committed_key,
    decrypt,
    job_info,
    parse_job,
    parse_job_aad,
)
from mrgc.wire.strict_cbor import Buffer

#: What a form is looked up by: its header's length and first bytes. Canonical order puts the edk there, and a wrapped
#: key of KMS is longer: so they hold no field that differs, tell data keys apart, and all jobs under one share them.
_LOOKUP: Final = struct.Struct("6x 2s 4x 96s")
_Key = tuple[bytes, ...]
MAX_CUTS: Final = 1_024  #: AADs remembered at once, a frame's worth.
MAX_CUTS_BYTES: Final = 16 << 20
MAX_FORMS: Final = 4_096  #: Remembered at once: more than the tenants that send within one epoch.
MAX_FORMS_BYTES: Final = 8 << 20  #: AADs of all of them together.
MAX_TIMES: Final = 16  #: Of one form, remembered at once; jobs that are sent together share theirs.
#: In canonical order, whatever optional fields lie between them.
_HOLES: Final = ("job", "salt", "items", "commit", "created", "expires")


class JobForm:
    """What the jobs of one form share.

    Args:
        first: header of the form's first job. Of it, `_HOLES` are that job's own.
        aad: that job's AAD, checked.
    """

    def __init__(self, first: JobHeader, aad: bytes) -> None:
        self.first: Final = first
        self.aad_bytes: Final = len(aad)
        self._template = AadTemplate(aad, _HOLES)
        #: Encoded items, created and expires → the same as numbers, all checked.
        self._times: dict[tuple[bytes, bytes, bytes], tuple[int, int, int]] = {}

    def cut(self, aad: bytes) -> JobCut | None:
        """Read the AAD of another job; None if it is of another form."""
        holes = self._template.read(aad)
        if holes is None:
            return None
        body_bytes, job, salt, items, commit, created, expires = holes
        times = self._times.get((items, created, expires))
        if times is None:
            numbers = read_uint(items), read_uint(created), read_uint(expires)
            if min(numbers) < 0:
                return None
            ensure_job_numbers(*numbers)
            if len(self._times) >= MAX_TIMES:
                self._times.clear()
            times = self._times[items, created, expires] = numbers
        return JobCut(self, int.from_bytes(body_bytes, "big"), job, salt, commit, *times)


class JobCut(NamedTuple):
    """The AAD of one job: its form, and its own fields that opening and sealing need."""

    form: JobForm
    body_bytes: int
    job: bytes
    salt: bytes
    commit: bytes
    items: int
    created: int
    expires: int

    def header(self) -> JobHeader:
        """Return the whole header; its context is that of the form, so nobody may change it."""
        return self.form.first._replace(
            job=self.job,
            salt=self.salt,
            commit=self.commit,
            items=self.items,
            created=self.created,
            expires=self.expires,
        )


class FormedJob(NamedTuple):
    """A sealed job whose form and header were checked; its tag was not."""

    cut: JobCut
    aad: bytes
    #: Ciphertext ‖ tag, a view into the received object.
    ciphertext: memoryview
    #: SHA-256 of the whole object (docs/spec.md §1).
    request: bytes


class JobForms:
    """Reads jobs, and remembers their forms. Threads may share one.

    Args:
        max_body_bytes: the reader's body cap.
    """

    def __init__(self, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._max_body_bytes = max_body_bytes
        #: Of forms that the lookup cannot tell apart, the first is kept.
        self._forms: BoundedMap[_Key, JobForm] = BoundedMap(entries=MAX_FORMS, size_bytes=MAX_FORMS_BYTES)
        #: By AAD, since an AAD that opening has read comes back for sealing within seconds.
        self._cuts: BoundedMap[bytes, JobCut] = BoundedMap(entries=MAX_CUTS, size_bytes=MAX_CUTS_BYTES)

    def parse_job(self, data: Buffer) -> FormedJob:
        """Check the form of a sealed job (docs/spec.md §1, and §2 check 1).

        Raises:
            FormatError: as `mrgc.wire.sealed.parse_job`.
            TooLargeError: the body is legal but over the reader's cap.
        """
        view = memoryview(data)
        key = _key(view)
        form = self._forms.get(key)
        if form is not None:
            aad = bytes(view[: form.aad_bytes])
            ciphertext = view[form.aad_bytes :]
            cut = form.cut(aad)
            if cut is not None and cut.body_bytes == len(ciphertext) - TAG_BYTES and self._is_body(cut.body_bytes):
                self._cuts.keep(aad, cut, size_bytes=len(aad))
                return FormedJob(cut, aad, ciphertext, hashlib.sha256(view).digest())
        job = parse_job(view, max_body_bytes=self._max_body_bytes)
        return FormedJob(self._first(key, job.header, job.aad), job.aad, job.ciphertext, job.request)

    def parse_sealed(self, data: Buffer) -> SealedJob:
        """Check the form of a sealed job, for who needs its whole header: `mrgc.wire.sealed.parse_job`, but faster.

        Raises:
            FormatError: as `mrgc.wire.sealed.parse_job`.
            TooLargeError: the body is legal but over the reader's cap.
        """
        formed = self.parse_job(data)
        return SealedJob(formed.cut.header(), formed.aad, formed.ciphertext, formed.request)

    def parse_aad(self, aad: Buffer) -> JobCut:
        """Read the AAD of a job that was opened, as `seal_batch` receives it (docs/spec.md §6).

        Raises:
            FormatError: as `mrgc.wire.sealed.parse_job_aad`.
        """
        received = bytes(aad)
        known = self._cuts.get(received)
        if known is not None:
            return known
        key = _key(received)
        form = self._forms.get(key)
        cut = form.cut(received) if form is not None else None
        if cut is not None and self._is_body(cut.body_bytes):
            return cut
        return self._first(key, parse_job_aad(received), received)

    def _first(self, key: _Key, header: JobHeader, aad: bytes) -> JobCut:
        """Note a form."""
        form = JobForm(header, aad)
        self._forms.keep(key, form, size_bytes=len(aad))
        body_bytes = int.from_bytes(aad[8 : PREFIX.size], "big")
        numbers = header.items, header.created, header.expires
        return JobCut(form, body_bytes, header.job, header.salt, header.commit, *numbers)

    def _is_body(self, count: int) -> bool:
        return 1 <= count <= self._max_body_bytes


def open_formed(job: FormedJob, *, data_key: Buffer) -> bytearray:
    """Authenticate and decrypt a job: checks (5) and (6) of docs/spec.md §2.

    Returns:
        The plaintext in a buffer of its own, which the caller zeroes after use.

    Raises:
        AuthenticationError: the data key, the commitment or the tag does not verify.
    """
    cut = job.cut
    aead_key = committed_key(data_key, cut.salt, cut.commit, job_info(cut.job))
    return decrypt(job.ciphertext, job.aad, aead_key=aead_key)


def _key(data: Buffer) -> _Key:
    # Every legal header is longer.
    return _LOOKUP.unpack_from(data) if len(data) >= _LOOKUP.size else ()
