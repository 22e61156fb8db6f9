"""Which received messages become jobs: docs/spec.md §2 and §5, and the tenant's registry entry.

It sees public bytes only and no tag is verified yet, so whatever it refuses is dead-lettered: a sealed failure result
would let a forged job occupy another's result.

May import: the standard library, mrgc.errors, mrgc.wire, worker. Called by the intake.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from mrgc.errors import BodyMissing, ExpiredError, MrgcError, NotAdmitted, ResultTooLarge, TooLargeError
from mrgc.wire.headers import JobHeader
from mrgc.wire.job_forms import JobForms
from worker.job import Job
from worker.registry import Tenant, bucket_of
from worker.settings import MAX_OVERHEAD_BYTES
from worker.sources.base import ClaimCheck, Lease

#: docs/spec.md §3: an embedding is float32, so a result has at least this many bytes per number …
NUMBER_BYTES: Final = 4
#: … and as JSON at most this many: sign, nine digits, point, exponent, comma.
JSON_NUMBER_BYTES: Final = 16
#: Header, tag and error entries of a result, roughly; only the batch budget uses it.
RESULT_OVERHEAD_BYTES: Final = 4_096


class Model(Protocol):
    """What admission must know of a model."""

    @property
    def dimensions(self) -> int:
        """Width of one embedding."""
        ...


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the connected engines serve."""

    #: By name without digest.
    models: Mapping[str, Model]
    max_result_bytes: int


class Refused(Exception):
    """Raised with the error that a message is dead-lettered for, and the object name that a hint of it would have."""

    def __init__(self, error: MrgcError, object_url: str | None = None) -> None:
        super().__init__(error.code)
        self.error = error
        self.object_url = object_url


class Admission:
    """The rules of one deployment. Threads may share one.

    Args:
        results_url: default prefix of result objects.
        max_body_bytes: the deployment's cap.
        max_cost_bytes: the batch budget, which no expected answer exceeds.
    """

    def __init__(self, results_url: str, max_body_bytes: int, max_cost_bytes: int) -> None:
        self._results_url = results_url
        self._max_body_bytes = max_body_bytes
        self._max_cost_bytes = max_cost_bytes
        self._forms = JobForms(max_body_bytes)

    def ensure_claim(self, check: ClaimCheck, tenant: Tenant | None) -> None:
        """Check a claim check before anything is fetched.

        Raises:
            Refused: it names a bucket that is not the tenant's, or an object over the cap.
        """
        if tenant is None:
            raise Refused(NotAdmitted("tenant has no registry entry"))
        bucket = bucket_of(check.url)
        if bucket is None or bucket not in tenant.claim_buckets | {bucket_of(tenant.results or self._results_url)}:
            raise Refused(BodyMissing("claim check names a bucket outside the tenant's registry entry"))
        if check.bytes > self._max_body_bytes + MAX_OVERHEAD_BYTES:
            raise Refused(TooLargeError("claim check names an object over the cap"))

    def ensure_body(self, body: bytes, check: ClaimCheck) -> None:
        """Check what a claim check brought.

        Raises:
            Refused: it is not the object that the message named.
        """
        if len(body) != check.bytes or hashlib.sha256(body).digest() != check.sha256:
            raise Refused(BodyMissing("claim check names an object with another length or hash"))

    def admit(self, lease: Lease, body: bytes, *, tenant: Tenant | None, capacity: Capacity, unix_s: float) -> Job:
        """Admit one sealed job.

        Args:
            lease: its message.
            body: the sealed job, from the message or from the bucket.
            tenant: the registry entry of the queue's tenant.
            capacity: what the engines serve now.
            unix_s: this host's clock; the enclave judges again by its own.

        Returns:
            The job.

        Raises:
            Refused: it is dead-lettered with the code of the error inside.
        """
        if tenant is None:
            raise Refused(NotAdmitted("tenant has no registry entry"))
        try:
            parsed = self._forms.parse_sealed(body)
            header = parsed.header
            if header.tenant != tenant.name:
                # No hint: the name would lie among another tenant's results.
                raise NotAdmitted("job names another tenant than its queue's")
        except MrgcError as error:
            raise Refused(error) from error
        prefix = tenant.results or self._results_url
        name = f"{tenant.name}/{header.job.hex()}/{parsed.request.hex()}"
        try:
            _ensure_entry_allows(header, tenant)
            # Whether `created` lies ahead is the enclave's to judge: a host whose clock is late would refuse every job.
            if unix_s >= header.expires:
                raise ExpiredError("job is expired")
            answer_bytes = self._expected_answer_bytes(header, capacity)
        except MrgcError as error:
            raise Refused(error, prefix + name) from error
        return Job(
            lease=lease,
            sealed=body,
            model=header.model,
            expires=header.expires,
            cost_bytes=max(len(body), answer_bytes),
            object_url=(header.result or prefix) + name,
            is_exclusive=tenant.exclusive,
        )

    def _expected_answer_bytes(self, header: JobHeader, capacity: Capacity) -> int:
        model = capacity.models.get(_name(header))
        if model is None:
            # The engine answers for a model that it does not have, with a failure that the tenant can trust.
            return RESULT_OVERHEAD_BYTES
        if header.items * model.dimensions * NUMBER_BYTES > capacity.max_result_bytes:
            raise ResultTooLarge("items and dimensions alone exceed the result cap")
        expected = header.items * model.dimensions * JSON_NUMBER_BYTES + RESULT_OVERHEAD_BYTES
        return min(expected, capacity.max_result_bytes + MAX_OVERHEAD_BYTES, self._max_cost_bytes)


def _ensure_entry_allows(header: JobHeader, tenant: Tenant) -> None:
    if header.key_arn not in tenant.key_arns:
        raise NotAdmitted("key is not in the tenant's registry entry")
    if _name(header) not in tenant.models:
        raise NotAdmitted("model is not in the tenant's registry entry")
    if header.result is not None and not tenant.allows_result(header.result):
        raise NotAdmitted("result target is not in the tenant's registry entry")


def _name(header: JobHeader) -> str:
    return header.model.partition("@")[0]
