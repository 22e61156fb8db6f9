"""The control plane on SQS: a real worker whose tenants' and Celery's queues are all at the local SQS, and no Redis."""

from __future__ import annotations

import base64
import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mrgc.errors import BY_CODE, ConfigError
from tests.intake.peer_engine import PeerEngine
from tests.intake.sealing import seal, stored
from tests.tasks import crafted
from tests.tasks.conftest import REPOSITORY, StartWorker, WorkerProcess
from tests.tasks.local_sqs import LocalSqs
from tests.waiting import until

CONTROL = "mrgc-celery_control"


@pytest.fixture
def sqs(tmp_path: Path) -> Iterator[LocalSqs]:
    """A server of the test's own, which it may kill."""
    sqs = LocalSqs(tmp_path / "sqs")
    yield sqs
    sqs.stop()


@pytest.fixture
def environ(sqs: LocalSqs, engine: PeerEngine, results: Path, environ: dict[str, str]) -> dict[str, str]:
    """The worker's environment without any Redis."""
    assert engine.address == environ["MRGC_ENGINES"]
    assert str(results) in environ["MRGC_RESULTS_URL"]
    return environ | sqs.environ


def call(environ: dict[str, str], task: str, *args: object) -> None:
    """Call a control task as an operator does."""
    command = [sys.executable, "-m", "celery", "-A", "tasks", "call", task, "--args", json.dumps(args)]
    subprocess.run(command, cwd=REPOSITORY, env=environ, check=True, timeout=30, stdout=subprocess.DEVNULL)


def expire_a_letter(sqs: LocalSqs) -> None:
    """Lay a job that expired long ago among the dead letters of acme."""
    job = seal(created=1_000, expires=1_060)
    sqs.send("mrgc-acme_dead", base64.b64encode(job).decode())


def serves(worker: WorkerProcess, sqs: LocalSqs, results: Path) -> None:
    """Demand that a good job of acme is served."""
    job = seal()
    sqs.send("mrgc-acme", base64.b64encode(job).decode())
    until(lambda: stored(results, job), within_s=20, what=f"a good job is served; see {worker.log_file}")


def test_control_tasks_run_from_sqs(
    start_worker: StartWorker, sqs: LocalSqs, environ: dict[str, str], results: Path
) -> None:
    """A call is taken from the queue, run once, and deleted; the worker serves jobs too, and SIGTERM ends it."""
    expire_a_letter(sqs)
    worker = start_worker()
    call(environ, "tasks.control.purge_expired", "acme")
    until(lambda: sqs.count("mrgc-acme_dead") == 0, within_s=20, what="the expired letter is purged")
    until(lambda: sqs.count(CONTROL) == 0, within_s=10, what="the call has left its queue")
    serves(worker, sqs, results)
    assert worker.log.count("expired dead letters purged") == 1
    assert worker.end() == 0
    assert "control queue gives no answer" not in worker.log


def test_beat_sends_to_sqs(start_worker: StartWorker, sqs: LocalSqs, environ: dict[str, str], tmp_path: Path) -> None:
    """The schedule reaches a worker through the same queue."""
    fast = f"exec(compile(open({str(REPOSITORY / 'celeryconfig.py')!r}).read(), 'celeryconfig.py', 'exec'))\n"
    (tmp_path / "celeryconfig.py").write_text(
        f"{fast}for each in beat_schedule.values():\n    each['schedule'] = 1.0\n"
    )
    worker = start_worker()
    env = {name: environ[name] for name in ("PATH", "HOME", "MRGC_BROKER_URL", *sqs.environ)}
    command = [sys.executable, "-m", "celery", "-A", "tasks", "beat", "--pidfile="]
    with (tmp_path / "beat.log").open("wb") as log:
        beat = subprocess.Popen(
            command, cwd=tmp_path, env=env | {"PYTHONPATH": str(REPOSITORY)}, stdout=log, stderr=log
        )
    try:
        until(lambda: 'mrgc_backlog_jobs{tenant="acme"}' in worker.page("/metrics")[1], within_s=30, what="a backlog")
    finally:
        beat.terminate()
        beat.wait(20)
    # SQS does not tell the age of the oldest message; of an empty queue it is known.
    assert 'mrgc_backlog_age_seconds{tenant="acme"} 0.0' in worker.page("/metrics")[1]
    assert worker.end() == 0


def test_statement_7_no_message_of_its_own_queue_kills_a_worker_on_sqs(
    start_worker: StartWorker, sqs: LocalSqs, environ: dict[str, str], results: Path
) -> None:
    """Statement 7: each is refused, runs nothing, and is a dead letter by the redrive policy; the worker goes on."""
    expire_a_letter(sqs)
    messages = crafted.poison("tasks.control.purge_expired", "acme")
    worker = start_worker("--loglevel", "WARNING")
    for text in messages.values():
        sqs.send(CONTROL, text)
    until(lambda: sqs.count(f"{CONTROL}_dead") == len(messages), within_s=40, what="all are dead letters")
    assert sqs.count(CONTROL) == 0
    assert sqs.count("mrgc-acme_dead") == 1
    assert worker.process.poll() is None
    serves(worker, sqs, results)
    # What asks for another queue's rights is still this queue's message: nothing is sent on.
    assert sqs.count("mrgc-celery_infer") == 0
    call(environ, "tasks.control.purge_expired", "acme")
    until(lambda: sqs.count("mrgc-acme_dead") == 0, within_s=20, what="a plain call is run")
    assert worker.end() == 0


def test_statement_7_a_tenants_crafted_messages_end_as_dead_letters_on_sqs(
    start_worker: StartWorker, sqs: LocalSqs, results: Path, engine: PeerEngine, tmp_path: Path
) -> None:
    """Statement 7: a tenant's messages are moved with a known reason and run nothing; a good job is served."""
    marker = tmp_path / "executed"
    entries = dict(crafted.tenant_entries(marker, job=seal("globex")))
    bodies = [
        base64.b64encode(each["job"]).decode() for each in entries.values() if each.keys() == {"job"} and each["job"]
    ]
    bodies += list(crafted.poison("tasks.infer", base64.b64encode(seal("globex")).decode()).values())
    bodies += [json.dumps({"ref": each["ref"].hex()}) for each in entries.values() if "ref" in each]
    sent = [body for body in bodies if len(body) < 1 << 20]
    worker = start_worker()
    for body in sent:
        sqs.send("mrgc-acme", body)
    until(lambda: sqs.count("mrgc-acme_dead") == len(sent), within_s=40, what="all are dead letters")
    letters: list[Any] = []
    while page := sqs.client.receive_message(
        QueueUrl=sqs.url("mrgc-acme_dead"), MaxNumberOfMessages=10, MessageAttributeNames=["All"]
    ).get("Messages"):
        letters += page
    assert sorted(letter["Body"] for letter in letters) == sorted(sent)
    reasons = {letter["MessageAttributes"]["reason"]["StringValue"] for letter in letters}
    assert reasons <= BY_CODE.keys() - {"internal", "poison"}
    assert not marker.exists()
    assert sqs.count("mrgc-globex") == sqs.count("mrgc-celery_infer") == 0
    assert engine.batches == []
    serves(worker, sqs, results)
    assert worker.end() == 0


def test_a_call_with_a_routing_key_of_its_own_is_deleted_where_it_came_from(
    start_worker: StartWorker, sqs: LocalSqs, results: Path
) -> None:
    """The sender names no queue: a plain call with another's routing key runs, and leaves this queue."""
    expire_a_letter(sqs)
    worker = start_worker()
    headers, body = crafted.call("tasks.control.purge_expired", "acme")
    info = {"exchange": "x", "routing_key": "mrgc-acme"}
    sqs.send(CONTROL, json.dumps(crafted.envelope(headers, body, delivery_info=info, delivery_tag={"a": 1})))
    until(lambda: sqs.count("mrgc-acme_dead") == 0, within_s=20, what="it ran")
    until(lambda: sqs.count(CONTROL) == 0, within_s=10, what="it is deleted")
    serves(worker, sqs, results)
    assert worker.end() == 0


def test_an_edge_worker_forwards_from_sqs(start_worker: StartWorker, sqs: LocalSqs, environ: dict[str, str]) -> None:
    """`tasks.infer` arrives as Celery sends it and in the base64 of kombu's default; what is no job stays behind."""
    for name in ("MRGC_ENGINES", "MRGC_RESULTS_URL"):
        del environ[name]
    worker = start_worker("-Q", "infer", ready=False)
    jobs = [base64.b64encode(seal()).decode() for _ in range(2)]
    call(environ, "tasks.infer", jobs[0])
    in_base64 = json.dumps(crafted.envelope(*crafted.call("tasks.infer", jobs[1]))).encode()
    sqs.send("mrgc-celery_infer", base64.b64encode(in_base64).decode())
    sqs.send("mrgc-celery_infer", json.dumps(crafted.envelope(*crafted.call("tasks.infer", "no job"))))
    until(lambda: sqs.count("mrgc-acme") == 2, within_s=30, what="both are in the tenant's queue")
    until(lambda: sqs.count("mrgc-celery_infer_dead") == 1, within_s=30, what="what is no job is a dead letter")
    assert sqs.count("mrgc-celery_infer") == 0
    messages = sqs.client.receive_message(QueueUrl=sqs.url("mrgc-acme"), MaxNumberOfMessages=10)["Messages"]
    assert sorted(message["Body"] for message in messages) == sorted(jobs)
    assert worker.end() == 0


def test_a_worker_outlives_sqs(
    start_worker: StartWorker, sqs: LocalSqs, environ: dict[str, str], results: Path
) -> None:
    """While SQS is away the worker lives and says so; afterwards it takes jobs and calls by itself."""
    expire_a_letter(sqs)
    worker = start_worker()
    sqs.kill()
    until(lambda: "queue_unavailable" in worker.page("/readyz")[1], within_s=20, what="the outage is told")
    assert worker.process.poll() is None
    sqs.restart()
    worker.wait_ready()
    serves(worker, sqs, results)
    call(environ, "tasks.control.purge_expired", "acme")
    until(lambda: sqs.count("mrgc-acme_dead") == 0, within_s=30, what="a call is run after the outage")
    assert worker.end() == 0


def test_remote_control_is_closed_on_sqs(
    start_worker: StartWorker, sqs: LocalSqs, environ: dict[str, str], results: Path
) -> None:
    """Statement 7: control commands are messages like any other and do nothing; the worker makes no queue for them."""
    worker = start_worker()
    for command in crafted.remote_control().values():
        sqs.send(CONTROL, command.decode())
    until(lambda: sqs.count(f"{CONTROL}_dead") == 3, within_s=30, what="the commands are dead letters")
    names = {url.rpartition("/")[2] for url in sqs.client.list_queues()["QueueUrls"]}
    assert names == {
        f"mrgc-{name}{dead}" for name in ("acme", "globex", "celery_control", "celery_infer") for dead in ("", "_dead")
    }
    serves(worker, sqs, results)
    del environ
    assert worker.end() == 0


def test_the_brokers_url_gives_kombu_its_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    """Region, endpoint and both queues come from one URL; the Redis settings are not there."""
    monkeypatch.setenv("MRGC_BROKER_URL", "https://sqs.eu-west-1.amazonaws.com/111122223333/mrgc-celery_{queue}")
    config = runpy.run_path(str(REPOSITORY / "celeryconfig.py"))
    assert config["broker_url"] == "sqs://sqs.eu-west-1.amazonaws.com"
    options = config["broker_transport_options"]
    assert (options["is_secure"], options["region"]) == (True, "eu-west-1")
    base = "https://sqs.eu-west-1.amazonaws.com/111122223333/mrgc-celery_"
    assert options["predefined_queues"] == {name: {"url": base + name} for name in ("control", "infer")}
    assert config["worker_enable_remote_control"] is False
    assert config["task_acks_on_failure"] is False
    assert "global_keyprefix" not in options


@pytest.mark.parametrize(
    "url",
    [
        "https://sqs.eu-west-1.amazonaws.com/111122223333/mrgc-control",
        "https://sqs.eu-west-1.amazonaws.com/{queue}/mrgc",
        "https://sqs.eu-west-1.amazonaws.com/mrgc-{queue}",
        "https://user:secret@sqs.eu-west-1.amazonaws.com/111122223333/mrgc-{queue}",
        "https://sqs.eu-west-1.amazonaws.com/111122223333/mrgc-{queue}.fifo",
    ],
)
def test_a_url_that_is_no_brokers_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """The variable is named and an example given; the value, which may hold a secret, is not shown."""
    monkeypatch.setenv("MRGC_BROKER_URL", url)
    with pytest.raises(ConfigError, match="MRGC_BROKER_URL") as refused:
        runpy.run_path(str(REPOSITORY / "celeryconfig.py"))
    assert "secret" not in str(refused.value)
