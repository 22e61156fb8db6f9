"""Jobs that must not be served: each ends with its own code, and its batch mates are served."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from infra import provision
from infra.local_nsm import create_pki
from mrgc.client import Client
from mrgc.payloads import JobOptions
from mrgc.waiting import Outcome
from mrgc.wire import enclave_protocol, frames
from mrgc.wire.addresses import connect, parse_address
from mrgc.wire.sealed import JobDraft, parse_job, seal_job
from tests.e2e.conftest import SERVE_S, RunningStack
from tests.forged_jobs import rewritten
from tests.waiting import until


def seal_under(stack: RunningStack, tenant: str, context: dict[str, str], **changes: Any) -> bytes:
    """Seal a job whose data key KMS wrapped under `context`, though its header claims the proper one."""
    env = stack.env(tenant)
    kms = provision.kms(stack.layout, tenant)
    data_key = kms.generate_data_key(KeyId=env["MRGC_KEY_ARN"], KeySpec="AES_256", EncryptionContext=context)
    created = int(time.time())
    draft = JobDraft(
        tenant=tenant,
        job=created.to_bytes(8, "big") + context["mrgc:use"].encode().ljust(8, b"_")[:8],
        key_arn=env["MRGC_KEY_ARN"],
        edk=data_key["CiphertextBlob"],
        context={"mrgc:tenant": tenant, "mrgc:use": "job"},
        model=env["MRGC_MODEL"],
        type="application/json",
        items=1,
        created=created,
        expires=created + 600,
    )
    return seal_job(draft._replace(**changes), b'{"inputs":["x"]}', data_key=data_key["Plaintext"])


def send_among_mates(client: Client, sealed: bytes) -> tuple[Outcome, list[Outcome]]:
    """Send a job between two good ones; return its outcome and theirs."""
    mates = [client.seal([f"mate {index}"], JobOptions(client.settings.model)) for index in range(2)]
    first, bad, last = client.send([mates[0], sealed, mates[1]])
    outcomes = {outcome.job.job: outcome for outcome in client.wait([first, bad, last], timeout_s=SERVE_S)}
    return outcomes[bad.job], [outcomes[first.job], outcomes[last.job]]


@pytest.mark.parametrize(
    "context", [{"mrgc:tenant": "globex", "mrgc:use": "job"}, {"mrgc:tenant": "acme", "mrgc:use": "payload"}]
)
def test_a_data_key_of_another_context_opens_nothing(stack: RunningStack, context: dict[str, str]) -> None:
    """A data key wrapped for another tenant, or another use, ends as auth; the batch mates are served."""
    sealed = seal_under(stack, "acme", context)
    with stack.client("acme") as client:
        bad, mates = send_among_mates(client, sealed)
    assert (bad.state, bad.code) == ("refused", "auth")
    assert [mate.state for mate in mates] == ["ok", "ok"]
    assert stack.dead_letter_of(sealed, "acme")["reason"] == "auth"


def test_a_trust_floor_above_the_enclaves_tier_is_refused_not_ignored(stack: RunningStack) -> None:
    """Statement 5: a job with floor 1 ends as trust_floor; nothing of it is released."""
    with stack.client("acme") as client:
        sealed = client.seal(["secret"], JobOptions(client.settings.model, floor=1))
        bad, mates = send_among_mates(client, sealed)
    assert (bad.state, bad.code) == ("refused", "trust_floor")
    assert [mate.state for mate in mates] == ["ok", "ok"]
    assert stack.dead_letter_of(sealed, "acme")["reason"] == "trust_floor"


def test_a_key_whose_policy_names_another_pcr0_is_never_released(stack: RunningStack) -> None:
    """KMS refuses this enclave the key of a tenant that trusts another image; other tenants are served."""
    provision.put_policy(stack.layout, "initech", stack.env("initech")["MRGC_KEY_ARN"], bytes([7]) * 48)
    with stack.client("initech") as client, stack.client("acme") as other:
        sealed = client.seal(["secret"], JobOptions(client.settings.model))
        refused, served = client.send([sealed]), other.submit(["served"])
        (outcome,) = client.wait(refused, timeout_s=SERVE_S)
        (mate,) = other.wait(served, timeout_s=SERVE_S)
    assert (outcome.state, outcome.code) == ("refused", "key_access")
    assert mate.state == "ok"
    assert stack.dead_letter_of(sealed, "initech")["reason"] == "key_access"


@contextmanager
def foreign_root(stack: RunningStack) -> Iterator[None]:
    """Let the enclave sign its documents under a root that the KMS does not know, for a while."""
    nsm, kept = stack.directory / "nsm", stack.directory / "nsm.kept"
    root = nsm / "root.pem"
    shutil.copytree(nsm, kept)
    try:
        shutil.rmtree(nsm)
        create_pki(nsm)
        shutil.copy(kept / "root.pem", root)  # what the KMS trusts stays what it was
        _restart_enclave(stack)
        yield
    finally:
        shutil.rmtree(nsm)
        kept.rename(nsm)
        _restart_enclave(stack)


def _restart_enclave(stack: RunningStack) -> None:
    stack.kill("enclave")
    until(stack.is_serving, within_s=SERVE_S, what="the intake ready again")


@pytest.mark.timeout(150)
def test_documents_under_a_foreign_root_obtain_no_data_key(stack: RunningStack) -> None:
    """Statement 6: an enclave under a foreign root gets no key; with its own root again, jobs are served."""
    with foreign_root(stack), stack.client("acme") as client:
        sealed = client.seal(["secret"], JobOptions(client.settings.model))
        (outcome,) = client.wait(client.send([sealed]), timeout_s=SERVE_S)
        assert (outcome.state, outcome.code) == ("refused", "key_access")
        assert stack.dead_letter_of(sealed, "acme")["reason"] == "key_access"
    stack.ensure_a_good_job_succeeds()


def test_a_connection_without_the_token_gets_nothing_but_health(stack: RunningStack) -> None:
    """Statement 11: without its token the enclave's socket gives its health, and no_token for all else."""
    with stack.client("acme") as client:
        sealed = client.seal(["secret"], JobOptions(client.settings.model))
    wrong = enclave_protocol.Hello(bytes(32), json=False)
    for request in (
        enclave_protocol.open_batch_request(1, [sealed]),
        enclave_protocol.plain_request(1, enclave_protocol.Op.METRICS),
        enclave_protocol.hello_request(1, wrong),
    ):
        with connect(parse_address(stack.layout.enclave), timeout_s=10) as sock:
            frames.send(sock, request)
            assert frames.recv(sock).header == {"code": "no_token"}
    with connect(parse_address(stack.layout.enclave), timeout_s=10) as sock:
        frames.send(sock, enclave_protocol.plain_request(2, enclave_protocol.Op.HEALTH))
        assert enclave_protocol.parse_health(frames.recv(sock)).hello


def test_a_queue_entry_that_is_no_sealed_job_is_dead_lettered_with_a_reason(stack: RunningStack) -> None:
    """Statement 7: garbage, an empty entry, a Celery message are dead-lettered; the next job is served."""
    before = len(stack.dead_letters("acme"))
    celery_message = json.dumps({"body": "gAJ9cQAu", "headers": {"task": "celery.starmap"}, "properties": 5}).encode()
    for fields in ({b"job": b"not a sealed job"}, {b"other": b"x"}, {b"job": celery_message}, {b"ref": b"\xff"}):
        stack.redis.xadd("q:acme", fields)
    until(lambda: len(stack.dead_letters("acme")) == before + 4, within_s=SERVE_S, what="four dead letters")
    assert {letter["reason"] for letter in stack.dead_letters("acme")[before:]} == {"bad_format"}
    stack.ensure_a_good_job_succeeds()


def test_a_copy_of_another_tenants_job_neither_runs_nor_touches_its_result(stack: RunningStack) -> None:
    """Statement 1: globex's job on acme's stream is refused, with no trace in globex's part of the store."""
    with stack.client("globex") as client:
        sealed = client.seal(["secret"], JobOptions(client.settings.model))
        (outcome,) = client.wait(client.send([sealed]), timeout_s=SERVE_S)
    assert outcome.state == "ok"
    before = stack.objects()
    stack.redis.xadd("q:acme", {b"job": sealed})
    assert stack.dead_letter_of(sealed, "acme")["reason"] == "not_admitted"
    assert stack.objects() == before
    assert not list((stack.directory / "results" / "globex" / outcome.job.id).glob("*.refused"))


def test_a_tenants_file_opens_its_own_queue_and_nothing_else(stack: RunningStack) -> None:
    """What `up` hands to a tenant is that tenant's user; without a password the Redis answers nobody."""
    with redis.Redis.from_url(stack.env("acme")["MRGC_QUEUE_URL"], socket_timeout=10) as acme:
        with pytest.raises(redis.ResponseError, match="permissions"):
            acme.xadd("q:globex", {"job": b"x"})
        with pytest.raises(redis.ResponseError, match="permissions"):
            acme.xrange("q:acme")
    port = stack.layout.ports["redis"]
    with redis.Redis(port=port, socket_timeout=10) as anybody, pytest.raises(redis.AuthenticationError):
        anybody.ping()


def test_what_another_tenant_makes_of_a_job_never_touches_its_result(stack: RunningStack) -> None:
    """Statement 1: of globex's job acme gets errors, whatever it claims; under globex's job id, its own result."""
    with stack.client("globex") as client:
        sealed = client.seal(["secret"], JobOptions(client.settings.model))
        (outcome,) = client.wait(client.send([sealed]), timeout_s=SERVE_S)
    assert outcome.state == "ok"
    before = stack.objects()
    own = seal_under(stack, "acme", {"mrgc:tenant": "acme", "mrgc:use": "job"}, job=outcome.job.job)
    acme = parse_job(own).header
    claimed = {"tenant": "acme", "context": acme.context, "key_arn": acme.key_arn}
    forged = {
        "auth": [rewritten(sealed, **claimed), rewritten(sealed, **claimed, edk=acme.edk)],
        "not_admitted": [
            rewritten(sealed, tenant="acme", context=acme.context),
            rewritten(sealed, key_arn=acme.key_arn),
            rewritten(sealed, **claimed, result="s3://globex-results/globex/"),
        ],
    }
    for code, jobs in forged.items():
        for job in jobs:
            stack.redis.xadd("q:acme", {b"job": job})
            assert stack.dead_letter_of(job, "acme")["reason"] == code
    with stack.client("acme") as client:
        (served,) = client.wait(client.send([own]), timeout_s=SERVE_S)
    assert served.state == "ok"
    after = stack.objects()
    assert [name for name in after if name not in before] == [f"acme/{outcome.job.id}/{served.job.request.hex()}.mrgc"]
    assert {name: after[name] for name in before} == before
