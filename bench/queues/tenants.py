"""A thousand tenants with a key and a data key each, their registry, and their sealed jobs.

Every key has a policy of its own, made for its tenant, and one administrator makes them all: a KMS client costs more
than what it asks for. What differs between one tenant and a thousand is what must differ: wrapped keys, contexts,
streams, registry entries.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

from bench.queues.null_engine import NAME
from infra import provision
from infra.local_enclave import pcrs
from infra.provision import SERVICE_ROLE, Stack
from mrgc.policy import key_policy
from mrgc.wire.headers import JSON_TYPE
from mrgc.wire.sealed import JobDraft, open_result, parse_job, parse_result, seal_job

#: The tenant of the stack that administers the keys of all.
ADMINISTRATOR: Final = "administrator"
BODY_BYTES: Final = 2_048
LIFETIME_S: Final = 86_400
#: KMS clients are thread-safe, and the local KMS answers several at once.
CALLERS: Final = 4


class Tenant(NamedTuple):
    """One tenant and its data key of this epoch."""

    name: str
    key_arn: str
    edk: bytes
    data_key: bytes

    def __repr__(self) -> str:
        return f"Tenant({self.name})"

    def seal(self, *, body_bytes: int = BODY_BYTES) -> bytes:
        """Seal one job of one text, with a body of so many bytes."""
        now = int(time.time())
        context = {"mrgc:tenant": self.name, "mrgc:use": "job"}
        job, expires = secrets.token_bytes(16), now + LIFETIME_S
        draft = JobDraft(
            self.name, job, self.key_arn, self.edk, context, NAME, JSON_TYPE, items=1, created=now, expires=expires
        )
        return seal_job(draft, _payload(body_bytes), data_key=self.data_key)

    def ensure_answers(self, result: bytes, job: bytes) -> None:
        """Check that a stored result is the answer to a job.

        Raises:
            MrgcError: it does not open under the tenant's data key.
            AssertionError: it answers another job, or with another status.
        """
        answer, asked = parse_result(result), parse_job(job)
        assert answer.header.status == "ok"
        assert answer.header.request == asked.request
        assert json.loads(open_result(answer, data_key=self.data_key))["errors"] == []


def create(stack: Stack, names: Sequence[str]) -> list[Tenant]:
    """Make a key and a data key for each name; needs the local KMS to be up."""
    kms, principal = provision.kms(stack, ADMINISTRATOR), provision.principal(stack, ADMINISTRATOR)
    measurement = pcrs()[0]

    def one(name: str) -> Tenant:
        policy = key_policy(tenant=name, tenant_principal=principal, service_role=SERVICE_ROLE, pcr0=measurement)
        arn: str = kms.create_key(Policy=json.dumps(policy))["KeyMetadata"]["Arn"]
        context = {"mrgc:tenant": name, "mrgc:use": "job"}
        made: Any = kms.generate_data_key(KeyId=arn, KeySpec="AES_256", EncryptionContext=context)
        return Tenant(name, arn, made["CiphertextBlob"], made["Plaintext"])

    with ThreadPoolExecutor(CALLERS) as callers:
        return list(callers.map(one, names))


def registry(tenants: Sequence[Tenant]) -> str:
    """Return the tenants.toml of these tenants."""
    return "\n".join(f'[tenants.{each.name}]\nkey_arns = ["{each.key_arn}"]\nmodels = ["{NAME}"]\n' for each in tenants)


def result_name(job: bytes) -> str:
    """Return the name of a job's result below the results' prefix (docs/spec.md §4)."""
    parsed = parse_job(job)
    return f"{parsed.header.tenant}/{parsed.header.job.hex()}/{parsed.request.hex()}.mrgc"


def _payload(body_bytes: int) -> bytes:
    frame = {"inputs": [""]}
    text = base64.b64encode(os.urandom(body_bytes)).decode()[: body_bytes - len(json.dumps(frame))]
    return json.dumps({"inputs": [text]}).encode()
