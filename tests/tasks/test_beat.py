"""Beat: a real beat process, a real worker and a real Redis, with the schedule of celeryconfig.py at a faster clock."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import celery.schedules
import pytest

from infra.redis_server import RedisServer
from tasks import control
from tests.access.users import login
from tests.intake.sealing import seal
from tests.tasks.conftest import REPOSITORY, StartWorker
from tests.tasks.emf_rules import checked
from tests.waiting import until
from worker import metrics
from worker.metrics import Metrics
from worker.sources.base import Backlog
from worker.sources.redis_streams import Client

#: The schedule as it is, but for its periods.
FAST_CONFIG = f"""
exec(compile(open({str(REPOSITORY / "celeryconfig.py")!r}).read(), "celeryconfig.py", "exec"))
for entry in beat_schedule.values():
    entry["schedule"] = 0.5
"""


@pytest.fixture
def start_beat(environ: dict[str, str], server: RedisServer, tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """Starts beat with the control user's rights; returns its log. It has neither queue nor registry."""
    (tmp_path / "celeryconfig.py").write_text(FAST_CONFIG)
    processes: list[subprocess.Popen[bytes]] = []

    def start() -> Path:
        env = {
            "PATH": environ["PATH"],
            "PYTHONPATH": str(REPOSITORY),
            "MRGC_BROKER_URL": server.broker_url(login=login("control")),
        }
        with (tmp_path / "beat.log").open("wb") as log:
            command = [sys.executable, "-m", "celery", "-A", "tasks", "beat", "--pidfile=", "--loglevel", "WARNING"]
            processes.append(subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log))
        return tmp_path / "beat.log"

    yield start
    for process in processes:
        process.terminate()
        assert process.wait(20) == 0


def emf_documents(log: str) -> list[dict[str, object]]:
    """Every metric line of a worker's output."""
    return [checked(line) for line in log.splitlines() if line.startswith('{"_aws"')]


def test_beat_has_the_control_tasks_run(
    start_worker: StartWorker, start_beat: Callable[[], Path], client: Client, tmp_path: Path
) -> None:
    """Backlogs reach the log as metric lines and /metrics as gauges, expired dead letters go, health is told."""
    client.xadd("dead:acme", {"job": b"expired long ago", "reason": "bad_format"}, id="1-1")
    client.xadd("dead:acme", {"job": seal(), "reason": "auth"})
    worker = start_worker(MRGC_EMF_NAMESPACE="mrgc/test")
    beat_log = start_beat()
    until(lambda: client.xlen("dead:acme") == 1, within_s=30, what="the expired letter is purged")
    until(
        lambda: any(each.get("Tenant") == "acme" and each["DeadLetters"] == 1 for each in emf_documents(worker.log)),
        within_s=20,
        what="acme's line shows the letter that is left",
    )
    until(lambda: any("WorkerReady" in each for each in emf_documents(worker.log)), within_s=20, what="health is told")
    page = worker.page("/metrics")[1]
    assert 'mrgc_dead_letter_jobs{tenant="acme"} 1.0' in page
    measured_s = re.search(r'mrgc_backlog_measured_timestamp_seconds\{tenant="globex"\} (\S+)', page)
    assert measured_s is not None
    assert abs(float(measured_s[1]) - time.time()) < 30
    assert worker.end() == 0
    assert "error" not in beat_log.read_text().lower()
    assert not (tmp_path / "celerybeat-schedule").exists()


def test_the_schedule_calls_what_a_worker_serves_and_expires_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every entry is a task of tasks.control, and a call that nobody took is dropped before the next is sent."""
    monkeypatch.setenv("MRGC_BROKER_URL", "redis://nowhere/1")
    schedule_of_all = runpy.run_path(str(REPOSITORY / "celeryconfig.py"))["beat_schedule"]
    served = {task.name for task in control.TASKS}
    for entry in schedule_of_all.values():
        assert entry["task"] in served
        schedule = entry["schedule"]
        period_s = 3_600.0 if isinstance(schedule, celery.schedules.crontab) else schedule
        assert 0 < entry["options"]["expires"] < period_s


def test_a_measurement_that_has_grown_old_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next round may run on another worker; a figure of this one leaves /metrics rather than stay as it was."""
    shown = Metrics()
    shown.set_backlog("acme", Backlog(3, 1, 2.0, 0))
    shown.set_backlog("globex", Backlog(1, 0, None, 0))
    page = shown.render().decode()
    assert 'mrgc_backlog_jobs{tenant="acme"} 3.0' in page
    assert 'mrgc_backlog_age_seconds{tenant="globex"}' not in page
    monkeypatch.setattr(metrics, "BACKLOG_SHOWN_S", -1.0)
    assert '{tenant="' not in shown.render().decode()
    shown.set_backlog("acme", Backlog(4, 1, 2.0, 0))
    monkeypatch.setattr(metrics, "BACKLOG_SHOWN_S", 90.0)
    assert 'mrgc_backlog_jobs{tenant="acme"} 4.0' in shown.render().decode()
