"""Results as the tenant reads them: their names, the comparison that docs/spec.md §4 demands, and the opening.

No I/O: objects come as bytes, data keys as a function. `open_result_of` is the only maker of `OpenedResult`, so whoever
holds one holds an authentic result of the job that was submitted.

Called by `mrgc.client`. May import: the standard library, mrgc.answers, mrgc.errors, mrgc.submitted, mrgc.wire.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from mrgc.answers import MAX_RESULT_VALUES, Answers, read_answers
from mrgc.errors import AuthenticationError, FormatError, ResultRefused
from mrgc.submitted import SubmittedJob
from mrgc.wire import sealed, strict_json
from mrgc.wire.headers import ResultHeader
from mrgc.wire.sealed import MAX_BODY_BYTES, MAX_HEADER_BYTES, MAX_TRAILER_BYTES, SealedResult
from mrgc.wire.strict_cbor import Buffer

#: Longest sealed result: prefix, header, body, tag, trailer (docs/spec.md §1).
MAX_RESULT_BYTES: Final = 12 + MAX_HEADER_BYTES + MAX_BODY_BYTES + 16 + MAX_TRAILER_BYTES
MAX_HINT_BYTES: Final = 64  #: A hint holds one code, ASCII.
_CODE: Final = re.compile(rb"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True, slots=True)
class OpenedResult:
    """An authentic result. At tier 0 status, model and body are what the service's host said (docs/spec.md §4)."""

    job: SubmittedJob
    #: ok, partial or failed.
    status: str
    #: name@sha256:digest of the manifest that answered.
    model: str
    #: Content type of `body`.
    type: str
    tier: int
    #: Unix seconds by the enclave's clock.
    created: int
    body: bytes = field(repr=False)

    def json(self) -> Any:
        """Parse a JSON body (docs/spec.md §3).

        Raises:
            ResultRefused: the body is not JSON, whatever its type says.
        """
        try:
            return strict_json.parse(self.body, max_values=MAX_RESULT_VALUES)
        except FormatError:
            raise ResultRefused(f"the result of job {self.job.id} is authentic, but its body is not json") from None

    def answers(self) -> Answers:
        """Read embeddings, or scores with their labels, whatever type the body has (docs/spec.md §3).

        Raises:
            ResultRefused: the job failed, or the body has another form, whatever its type says.
        """
        if self.status == "failed":
            raise ResultRefused(f"job {self.job.id} failed with {self.failure}: its result has no rows")
        try:
            return read_answers(self.body, self.type)
        except FormatError as error:
            raise ResultRefused(f"the result of job {self.job.id} is authentic, but {error}") from None

    @property
    def failure(self) -> str:
        """The first code in a failed result's body, `{"errors": [{"code": …}]}`; empty for other results.

        `unknown` where the body has another shape: it is what the service's host said, and only shown.
        """
        if self.status != "failed":
            return ""
        try:
            code = self.json()["errors"][0]["code"].encode("ascii")
        except (ResultRefused, LookupError, TypeError, AttributeError, UnicodeEncodeError):
            code = b""
        return _bounded_code(code) or "unknown"


def object_name(job: SubmittedJob) -> str:
    """Name the result object of a job below the results prefix (docs/spec.md §4)."""
    return f"{job.tenant}/{job.id}/{job.request.hex()}.mrgc"


def hint_name(job: SubmittedJob) -> str:
    """Name the unauthenticated hint beside the result object (docs/spec.md §4)."""
    return f"{job.tenant}/{job.id}/{job.request.hex()}.refused"


def read_hint(data: bytes) -> str | None:
    """Read a hint: one code. Anything else is no hint, since anyone who can write there may have written it."""
    return _bounded_code(data.strip()) or None


def job_of(data: Buffer) -> bytes:
    """Read the job id that a stored object claims, to look up the record it must be compared with.

    Raises:
        ResultRefused: the bytes are not a sealed result.
    """
    return _parse(data).header.job


def open_result_of(
    job: SubmittedJob, data: Buffer, *, key_arn: str, data_key_for: Callable[[bytes], Buffer]
) -> OpenedResult:
    """Compare a stored object with the job that was submitted, then authenticate and decrypt it.

    Args:
        job: the tenant's own record.
        data: the object as stored.
        key_arn: the tenant's KMS key, from the tenant's own configuration, never from the object.
        data_key_for: maps the record's edk to the data key; called only when every comparison has passed.

    Raises:
        ResultRefused: not a sealed result, of another job, tenant or key, below the job's trust floor, or it does
            not authenticate.
        KeyAccessError, KeyBusyError, ConfigError: the data key cannot be had.
    """
    result = _parse(data)
    header = result.header
    _ensure_result_of(job, header, key_arn)
    try:
        body = bytes(sealed.open_result(result, data_key=data_key_for(job.edk)))
    except AuthenticationError as error:
        raise ResultRefused(f"the object stored as result of job {job.id} does not authenticate") from error
    return OpenedResult(job, header.status, header.model, header.type, header.tier, header.created, body)


def _parse(data: Buffer) -> SealedResult:
    try:
        return sealed.parse_result(data)
    except FormatError as error:
        raise ResultRefused(f"not a sealed result: {error}") from error


def _ensure_result_of(job: SubmittedJob, header: ResultHeader, key_arn: str) -> None:
    """The comparison of docs/spec.md §4, with the configured key in place of the one that the record names."""
    expected = {
        "tenant": job.tenant,
        "job": job.job,
        "key_arn": key_arn,
        "edk": job.edk,
        "context": job.context,
        "request": job.request,
    }
    for name, value in expected.items():
        if getattr(header, name) != value:
            raise ResultRefused(f"the object stored as result of job {job.id} differs from the job in {name}")
    if header.tier < job.floor:
        raise ResultRefused(f"the result of job {job.id} was made at tier {header.tier}, below its floor {job.floor}")


def _bounded_code(code: bytes) -> str:
    return code.decode("ascii") if _CODE.fullmatch(code) else ""
