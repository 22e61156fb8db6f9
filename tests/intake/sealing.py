"""Sealed jobs of two tenants, made as a tenant makes them, with data keys that no engine of these tests ever sees."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from mrgc.wire import sealed
from mrgc.wire.sealed import JobDraft

KEY_ARN = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"

REGISTRY = f"""
[tenants.acme]
weight = 2
key_arns = ["{KEY_ARN}"]
models = ["m"]
allowed_results = ["s3://acme-results/out/"]
claim_buckets = ["acme-jobs"]

[tenants.globex]
key_arns = ["{KEY_ARN}"]
models = ["m"]
"""


def seal(tenant: str = "acme", *, payload: bytes = b'{"inputs":["x"]}', **changes: Any) -> bytes:
    """Seal one job; `changes` replace fields of its header."""
    now = int(time.time())
    fields: dict[str, Any] = {
        "tenant": tenant,
        "job": os.urandom(16),
        "key_arn": KEY_ARN,
        "edk": b"wrapped",
        "context": {"mrgc:use": "job", "mrgc:tenant": tenant},
        "model": "m",
        "type": "application/json",
        "items": 1,
        "created": now,
        "expires": now + 3_600,
    }
    return sealed.seal_job(JobDraft(**(fields | changes)), payload, data_key=bytes(32))


def object_name(job: bytes, *, suffix: str = "mrgc") -> str:
    """Name of a job's result below the prefix (docs/spec.md §4)."""
    parsed = sealed.parse_job(job)
    return f"{parsed.header.tenant}/{parsed.header.job.hex()}/{parsed.request.hex()}.{suffix}"


def stored(results: Path, job: bytes, *, suffix: str = "mrgc") -> bytes | None:
    """Bytes of a job's stored result or hint, if there is one."""
    path = results / object_name(job, suffix=suffix)
    return path.read_bytes() if path.exists() else None
