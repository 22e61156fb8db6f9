"""The sealed results of an enclave, written by their forms.

Results for jobs of one form, of one model, type and status, have headers that differ in job, salt, commit, created and
request only. The first is sealed in full, which holds its fields to docs/spec.md §4; the others are laid out after it.
Forms are remembered across batches, because a batch may hold a job or two of each of many tenants. What is remembered
is public.

Called by `enclave.batches`. May import: the standard library, mrgc.wire.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from mrgc.wire import strict_cbor
from mrgc.wire.aad_template import AadTemplate
from mrgc.wire.bounded_map import BoundedMap
from mrgc.wire.enclave_protocol import SealRequest
from mrgc.wire.headers import TIME_END, ensure
from mrgc.wire.job_forms import MAX_FORMS, MAX_FORMS_BYTES, JobCut, JobForm
from mrgc.wire.sealed import TAG_BYTES, ResultDraft, encrypt, ensure_body, fresh_keys, result_info, seal_result
from mrgc.wire.strict_cbor import Buffer

#: In canonical order, whatever optional fields lie between them.
_HOLES: Final = ("job", "salt", "commit", "created", "request")


class _Form(NamedTuple):
    """What results of one form have in common."""

    #: By identity: a job form that was forgotten and read again makes another result form.
    job: JobForm
    model: str
    type: str
    status: str
    #: Length of `created` as it is encoded, since a hole has one length.
    created_bytes: int


class ResultForms:
    """Seals results, and remembers their forms. Threads may share one.

    Args:
        tier: trust tier of whoever asks for the results (docs/spec.md §4).
    """

    def __init__(self, *, tier: int) -> None:
        self._tier = tier
        self._templates: BoundedMap[_Form, AadTemplate] = BoundedMap(entries=MAX_FORMS, size_bytes=MAX_FORMS_BYTES)

    def seal(self, result: SealRequest, job: JobCut, *, created: int, data_key: Buffer) -> bytes:
        """Seal one result body under a key derived from the request's own data key (docs/spec.md §4).

        Args:
            result: the body, 1..33,554,432 bytes, the request, and what its maker says of it.
            job: the job that it answers, of a checked header.
            created: unix seconds.
            data_key: that of the job.

        Raises:
            FormatError: a field breaks its rule, or the body is empty or over the cap.
        """
        written = _written(created)
        form = _Form(job.form, result.model, result.type, result.status, len(written))
        template = self._templates.get(form)
        if template is None:
            sealed = seal_result(self._draft(result, job, created), result.body, data_key=data_key)
            aad = sealed[: len(sealed) - len(result.body) - TAG_BYTES]
            self._templates.keep(form, AadTemplate(aad, _HOLES), size_bytes=len(aad))
            return sealed
        ensure_body(result.body)
        salt, aead_key, commit = fresh_keys(data_key, result_info(job.job, result.request))
        body_bytes = len(result.body).to_bytes(4, "big")
        aad = template.write(body_bytes, job.job, salt, commit, written, result.request)
        return encrypt(result.body, aad, aead_key=aead_key)

    def _draft(self, result: SealRequest, job: JobCut, created: int) -> ResultDraft:
        header = job.form.first
        return ResultDraft(
            tenant=header.tenant,
            job=job.job,
            key_arn=header.key_arn,
            edk=header.edk,
            context=header.context,
            request=result.request,
            model=result.model,
            type=result.type,
            status=result.status,
            tier=self._tier,
            created=created,
        )


@lru_cache(maxsize=2)
def _written(created: int) -> bytes:
    # All results of a batch share theirs.
    ensure(0 <= created < TIME_END, "created")
    return strict_cbor.encode(created)
