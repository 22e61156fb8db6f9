"""Jobs that somebody puts together from parts of others: the enclave trusts no sender."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from mrgc.errors import AuthenticationError, MrgcError
from mrgc.wire.sealed import open_result, parse_job, parse_result
from tests.enclave.stack import Caller, DataKey, Kms, seal_request
from tests.forged_jobs import rewritten


@pytest.fixture(scope="module")
def attacker(kms: Kms) -> DataKey:
    """Give A a key of its own."""
    return kms.data_key("acme")


@pytest.fixture(scope="module")
def victim(kms: Kms) -> DataKey:
    """Give B a key of its own."""
    return kms.data_key("globex")


def test_a_rewritten_job_of_another_tenant_never_opens(caller: Caller, attacker: DataKey, victim: DataKey) -> None:
    """Statement 1: B's job under any mixture of tenant, key, wrapped key, context and bucket but its own is refused."""
    job = victim.job(b"the secret of globex", result="s3://globex-results/mrgc/")
    choices: dict[str, list[Any]] = {
        "tenant": [attacker.tenant, victim.tenant],
        "key_arn": [attacker.key_arn, victim.key_arn],
        "edk": [attacker.edk, victim.edk],
        "context": [attacker.context, victim.context],
        "result": ["s3://acme-results/mrgc/", "s3://globex-results/mrgc/", None],
    }
    mixtures = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    forged = [mixture for mixture in mixtures if rewritten(job, **mixture) != job]
    assert len(forged) == len(mixtures) - 1
    codes = set(caller.open_codes([rewritten(job, **mixture) for mixture in forged]))
    # bad_format: a context that is not its tenant's; key_access: a key whose policy names another tenant.
    assert codes == {"auth", "bad_format", "key_access"}
    assert caller.open_codes([job]) == ["ok"]


def test_what_comes_of_anothers_job_opens_under_that_ones_data_key_alone(
    caller: Caller, attacker: DataKey, victim: DataKey
) -> None:
    """Statement 1: B's job, submitted as it is by anyone, gives an object that only B's data key opens."""
    job = victim.job()
    opened = caller.open_one(job)
    assert opened.request == parse_job(job).request
    (sealed,) = caller.seal([seal_request(opened, job, b"answer")])
    assert isinstance(sealed, memoryview)
    result = parse_result(sealed)
    assert (result.header.tenant, result.header.request) == ("globex", opened.request)
    assert open_result(result, data_key=victim.plaintext) == b"answer"
    with pytest.raises(AuthenticationError):
        open_result(result, data_key=attacker.plaintext)


@pytest.mark.parametrize("fields", [("edk",), ("job",), ("salt",), ("commit",), ("salt", "commit"), ("edk", "job")])
def test_parts_of_two_jobs_cannot_be_swapped(caller: Caller, kms: Kms, fields: tuple[str, ...]) -> None:
    """Statement 2: wrapped keys, job ids and commitments belong to one job, even within a tenant and key."""
    first = kms.data_key()
    second = kms.data_key(key_arn=first.key_arn)
    jobs = first.job(b"one"), second.job(b"two")
    headers = [parse_job(job).header for job in jobs]
    swapped = [
        rewritten(job, **{name: getattr(other, name) for name in fields})
        for job, other in zip(jobs, reversed(headers), strict=True)
    ]
    assert caller.open_codes([*swapped, *jobs]) == ["auth", "auth", "ok", "ok"]


def test_bodies_and_tags_of_two_jobs_cannot_be_swapped(caller: Caller, kms: Kms) -> None:
    """Statement 2: nor do ciphertexts or tags of one epoch fit another job of the same data key."""
    key = kms.data_key()
    one, two = key.job(b"one"), key.job(b"two")
    bodies = one[:-19] + two[-19:], two[:-19] + one[-19:]
    tags = one[:-16] + two[-16:], two[:-16] + one[-16:]
    assert caller.open_codes([*bodies, *tags, one, two]) == ["auth"] * 4 + ["ok"] * 2


def test_results_are_sealed_for_the_job_that_was_opened(caller: Caller, kms: Kms) -> None:
    """Statement 2: tickets and headers of two opened jobs cannot be crossed, so no result is renamed in the enclave."""
    key, other = kms.data_key(), kms.data_key("globex")
    jobs = key.job(), other.job()
    one, two = (caller.open_one(job) for job in jobs)
    outcomes = caller.seal([seal_request(one, jobs[1]), seal_request(two, jobs[0]), seal_request(one, jobs[0])])
    assert [o.code if isinstance(o, MrgcError) else "ok" for o in outcomes] == ["ticket", "ticket", "ok"]
