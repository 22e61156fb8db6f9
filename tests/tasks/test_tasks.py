"""The tasks as functions, against a real Redis."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.redis_server import RedisServer
from mrgc.errors import FormatError, MrgcError, NotAdmitted, QueueUnavailable, TooLargeError
from tasks import control, infer
from tests.intake.sealing import seal
from worker.sources.redis_streams import Client


@pytest.fixture(autouse=True)
def _edge(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment of an edge worker, and tasks that have not connected yet."""
    for name in ("MRGC_QUEUE_URL", "MRGC_BROKER_URL", "MRGC_REGISTRY"):
        monkeypatch.setenv(name, environ[name])
    infer._edge.cache_clear()
    yield
    infer._edge().admin.close()
    infer._edge.cache_clear()


def text(job: bytes) -> str:
    """A job as a producer hands it to `tasks.infer`."""
    return base64.b64encode(job).decode()


def test_a_sealed_job_is_forwarded_to_its_tenants_queue(client: Client) -> None:
    """The message is the job, byte for byte, and the answer names it."""
    job = seal("globex")
    message_id = infer.infer(text(job))
    assert client.xrange("q:globex") == [(message_id.encode(), {b"job": job})]


JOB = seal()


@pytest.mark.parametrize(
    ("job", "error"),
    [
        (None, FormatError),
        ({"inputs": ["plaintext"]}, FormatError),
        ("plaintext", FormatError),
        (text(b"garbage"), FormatError),
        (text(JOB) + "\n", FormatError),
        (text(JOB)[:-4], FormatError),
        ("A" * 699_056, TooLargeError),
        (text(seal("initech")), NotAdmitted),
        (text(seal(key_arn="arn:aws:kms:eu-west-1:123456789012:key/other")), NotAdmitted),
    ],
)
def test_what_is_no_admissible_sealed_job_is_refused(client: Client, job: object, error: type[MrgcError]) -> None:
    """Nothing but a sealed job of a registered tenant under a registered key enters a queue."""
    with pytest.raises(error):
        infer.infer(job)
    assert client.keys("q:*") == []


def test_a_queue_that_is_gone_is_a_retry(server: RedisServer) -> None:
    """The task's autoretry takes QueueUnavailable, so nothing is lost while the queue restarts."""
    server.kill()
    with pytest.raises(QueueUnavailable):
        infer.infer.__wrapped__(text(JOB))
    assert QueueUnavailable in infer.infer.autoretry_for


def test_control_tasks_measure_redrive_and_purge(client: Client) -> None:
    """Each control task does its work on the queues of the registry, and on no others."""
    client.xadd("dead:acme", {"job": b"old", "reason": "bad_format"}, id="1-1")
    client.xadd("dead:acme", {"job": JOB, "reason": "auth"})
    assert control.backlog()["acme"]["dead"] == 2
    assert control.purge_expired("acme") == 1
    assert control.redrive("acme", "poison") == 0
    assert control.redrive("acme") == 1
    assert control.backlog()["acme"] | {"oldest_age_s": 0} == {
        "length": 1,
        "pending": 0,
        "oldest_age_s": 0,
        "dead": 0,
    }
    for task in (control.redrive, control.purge_expired):
        with pytest.raises(NotAdmitted):
            task("initech")


def test_health_without_an_intake_says_so() -> None:
    """An edge worker answers that it has none."""
    assert control.health() == ["no_intake"]
    assert control.inspect_health(None) == {"ready": False, "reasons": ["no_intake"]}


def test_the_configuration_refuses_to_start_without_a_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without MRGC_BROKER_URL Celery would look for a broker on localhost without a word."""
    monkeypatch.delenv("MRGC_BROKER_URL")
    source = Path(__file__).parents[2] / "celeryconfig.py"
    with pytest.raises(MrgcError, match="MRGC_BROKER_URL"):
        exec(compile(source.read_text(), str(source), "exec"), {})  # noqa: S102  the file as Celery imports it
