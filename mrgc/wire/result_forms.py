"""The sealed results of a batch, written by their forms.

Results for jobs of one form, of one model, type and status, have headers that differ in job, salt, commit and request
only. The first is sealed in full, which holds its fields to docs/spec.md §4; the others are laid out after it.

Called by `enclave.batches`. May import: the standard library, mrgc.wire.
"""

from __future__ import annotations

from typing import Final

from mrgc.wire.aad_template import AadTemplate
from mrgc.wire.sealed import TAG_BYTES, ResultDraft, encrypt, ensure_body, fresh_keys, result_info, seal_result
from mrgc.wire.strict_cbor import Buffer

#: In canonical order, whatever optional fields lie between them.
_HOLES: Final = ("job", "salt", "commit", "request")


class ResultForm:
    """Seals the results of one form.

    Args:
        draft: what their headers share; its job and request are not looked at.
    """

    def __init__(self, draft: ResultDraft) -> None:
        self._draft = draft
        self._template: AadTemplate | None = None

    def seal(self, body: Buffer, *, job: bytes, request: bytes, data_key: Buffer) -> bytes:
        """Seal one result body under a key derived from the request's own data key (docs/spec.md §4).

        Args:
            body: the result, 1..33,554,432 bytes.
            job: 16 bytes, of a checked header.
            request: 32 bytes.
            data_key: that of the job.

        Raises:
            FormatError: a field breaks its rule, or the body is empty or over the cap.
        """
        if self._template is None:
            sealed = seal_result(self._draft._replace(job=job, request=request), body, data_key=data_key)
            self._template = AadTemplate(sealed[: len(sealed) - len(body) - TAG_BYTES], _HOLES)
            return sealed
        ensure_body(body)
        salt, aead_key, commit = fresh_keys(data_key, result_info(job, request))
        aad = self._template.write(len(body).to_bytes(4, "big"), job, salt, commit, request)
        return encrypt(body, aad, aead_key=aead_key)
