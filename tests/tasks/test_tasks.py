"""The tasks as functions, against a real Redis."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from infra.redis_server import RedisServer
from mrgc.errors import FormatError, MrgcError, NotAdmitted, QueueUnavailable, TooLargeError
from tasks import control, infer
from tests.intake.sealing import seal
from tests.tasks.emf_rules import checked
from worker.sources.base import Backlog
from worker.sources.redis_admin import RedisAdmin
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


@pytest.fixture
def thousand(environ: dict[str, str]) -> list[str]:
    """A registry of a thousand tenants."""
    names = [f"tenant-{number:03}" for number in range(1_000)]
    entry = '[tenants.{}]\nkey_arns = []\nmodels = ["m"]\n'
    Path(environ["MRGC_REGISTRY"]).write_text("".join(map(entry.format, names)))
    return names


def test_a_thousand_tenants_are_measured_in_pages(
    client: Client, thousand: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One round reaches all of them, has a metric line for each and one for all, and ten requests go to the broker."""
    monkeypatch.setenv("MRGC_EMF_NAMESPACE", "mrgc")
    client.xadd("q:tenant-999", {"job": JOB})
    pages: list[int] = []
    measure = RedisAdmin.backlog

    def counting(admin: RedisAdmin, tenants: Sequence[str]) -> dict[str, Backlog]:
        pages.append(len(tenants))
        return measure(admin, tenants)

    monkeypatch.setattr(RedisAdmin, "backlog", counting)
    assert control.backlog().keys() == set(thousand)
    assert pages == [100] * 10
    *each, everything = [checked(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"_aws"')]
    assert {document["Tenant"]: document["BacklogJobs"] for document in each} == dict.fromkeys(thousand, 0) | {
        "tenant-999": 1
    }
    assert (everything["BacklogJobs"], everything["TenantsUnmeasured"]) == (1, 0)


def test_a_round_that_takes_too_long_is_cut_short_and_says_so(
    thousand: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only whole pages are measured, the rest is counted, and the next minute's round begins elsewhere."""
    monkeypatch.setenv("MRGC_EMF_NAMESPACE", "mrgc")
    monkeypatch.setattr(control, "MEASURE_S", 0.0)
    rounds = []
    for minute in (7, 8):
        monkeypatch.setattr(control, "_turn", lambda _interval_s, minute=minute: minute)
        rounds.append(set(control.backlog()))
    assert rounds == [set(thousand[700:800]), set(thousand[800:900])]
    last = checked(capsys.readouterr().out.splitlines()[-1])
    assert last["TenantsUnmeasured"] == 900


def test_a_purge_of_all_visits_whoever_has_dead_letters(client: Client) -> None:
    """Expired letters of every tenant go, what could still be redriven stays, and clean tenants are not visited."""
    for tenant in ("acme", "globex"):
        client.xadd(f"dead:{tenant}", {"job": b"old", "reason": "bad_format"}, id="1-1")
    client.xadd("dead:globex", {"job": seal("globex"), "reason": "auth"})
    assert control.purge_all() == 2
    assert (client.xlen("dead:acme"), client.xlen("dead:globex")) == (0, 1)
    assert control.purge_all() == 0


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
