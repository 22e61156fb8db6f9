"""What `mrgc verify` tells of an accepted attestation document: lines for a person, one object for a program.

Everything shown was verified, and what was not compared with anything is said to be so. Called by `mrgc.cli_verify`.
May import: the standard library, mrgc.attest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from mrgc.attest.chain import AWS_ROOT_SHA256, Root, validity
from mrgc.attest.document import IMAGE_PCRS, AttestationDocument, Kind
from mrgc.attest.verify import Policy, VerifiedDocument, VerifiedTpmDocument

#: Longer fields are cut on a person's screen; a program gets them whole.
_SHOWN_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Accepted:
    """A verified document, and everything by which it was judged."""

    verified: VerifiedDocument | VerifiedTpmDocument
    root: Root
    at: datetime
    policy: Policy

    @property
    def document(self) -> AttestationDocument:
        """Return the verified fields."""
        return self.verified.document

    @property
    def kind(self) -> Kind:
        """Return what attests."""
        return Kind.ENCLAVE if isinstance(self.verified, VerifiedDocument) else Kind.NITROTPM

    @property
    def is_debug(self) -> bool:
        """Return whether an enclave's image registers are zero: its parent can read its memory."""
        is_zero = not all(any(self.document.pcrs.get(index, b"")) for index in IMAGE_PCRS)
        return self.kind is Kind.ENCLAVE and is_zero

    @property
    def root_sha256(self) -> str:
        """Return the fingerprint of the trust anchor, in hex."""
        return hashlib.sha256(self.root.der).hexdigest()

    @property
    def certificates(self) -> tuple[bytes, ...]:
        """Return the chain, root first."""
        return (*self.document.cabundle, self.document.certificate)


def as_fields(accepted: Accepted) -> dict[str, object]:
    """Return everything as JSON types: bytes in hex, times in ISO 8601."""
    document, policy = accepted.document, accepted.policy
    valid_from, valid_until = validity(accepted.certificates)
    return {
        "accepted": True,
        "kind": accepted.kind.value,
        "module_id": document.module_id,
        "timestamp": _said_time(_time_of(document)),
        "timestamp_ms": document.timestamp_ms,
        "at": _said_time(accepted.at),
        "root": {"sha256": accepted.root_sha256, "aws": accepted.root_sha256 == AWS_ROOT_SHA256},
        "chain": {
            "certificates": len(accepted.certificates),
            "valid_from": _said_time(valid_from),
            "valid_until": _said_time(valid_until),
        },
        "digest": document.digest,
        "pcrs": {str(index): document.pcrs[index].hex() for index in sorted(document.pcrs)},
        "debug": accepted.is_debug,
        "public_key": _hex(document.public_key),
        "user_data": _hex(document.user_data),
        "nonce": _hex(document.nonce),
        "policy": {
            "pcrs": {str(index): policy.pcrs[index].hex() for index in sorted(policy.pcrs)},
            "nonce": _hex(policy.nonce),
            "max_age_s": policy.max_age_s,
            "allow_debug": policy.allow_debug,
        },
    }


def as_lines(accepted: Accepted) -> Iterator[str]:
    """Yield what a person reads: name, value, and after a value whether it was compared."""
    document, policy = accepted.document, accepted.policy
    valid_from, valid_until = validity(accepted.certificates)
    is_aws = accepted.root_sha256 == AWS_ROOT_SHA256
    yield f"accepted: {accepted.kind.value} {document.module_id}"
    if accepted.is_debug:
        yield "DEBUG MODE: the parent can read this enclave's memory, and nothing says which image runs"
    yield f"timestamp    {_said_time(_time_of(document))}"
    yield f"judged at    {_said_time(accepted.at)}"
    yield f"root         {accepted.root_sha256} ({'AWS Nitro Enclaves Root-G1' if is_aws else 'NOT the root of AWS'})"
    yield (
        f"chain        {len(accepted.certificates)} certificates, "
        f"valid {_said_time(valid_from)} to {_said_time(valid_until)}"
    )
    for index in sorted(document.pcrs):
        if any(document.pcrs[index]) or index in policy.pcrs:
            compared = "as demanded" if index in policy.pcrs else "not compared"
            yield f"{f'PCR{index}':13}{document.pcrs[index].hex()} ({compared})"
    zero = [f"PCR{index}" for index in sorted(document.pcrs.keys() - policy.pcrs) if not any(document.pcrs[index])]
    if zero:
        yield f"zero         {' '.join(zero)}"
    yield f"public_key   {_shown(document.public_key)}"
    yield f"user_data    {_shown(document.user_data)}"
    yield f"nonce        {_shown(document.nonce)}{'' if policy.nonce is None else ' (as demanded)'}"
    yield f"policy       {'; '.join(_demands(accepted))}"


def _demands(accepted: Accepted) -> Iterator[str]:
    policy = accepted.policy
    if policy.pcrs:
        yield f"{', '.join(f'PCR{index}' for index in sorted(policy.pcrs))} as given"
    else:
        yield f"no PCR compared: any {accepted.kind.value} under this root is accepted"
    yield "nonce as given" if policy.nonce is not None else "no nonce compared"
    yield "archived record, any age" if policy.max_age_s is None else f"at most {policy.max_age_s:.0f} s old"
    if accepted.kind is Kind.ENCLAVE:
        yield "debug mode accepted" if policy.allow_debug else "debug mode refused"


def _time_of(document: AttestationDocument) -> datetime:
    return datetime.fromtimestamp(document.timestamp_ms / 1000, UTC)


def _said_time(time: datetime) -> str:
    precision = "milliseconds" if time.microsecond else "seconds"
    return time.astimezone(UTC).isoformat(timespec=precision).replace("+00:00", "Z")


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


def _shown(value: bytes | None) -> str:
    if value is None:
        return "none"
    if len(value) <= _SHOWN_BYTES:
        return f"{value.hex()} ({len(value)} bytes)"
    return f"{value[:_SHOWN_BYTES].hex()}… ({len(value)} bytes, SHA-256 {hashlib.sha256(value).hexdigest()})"
