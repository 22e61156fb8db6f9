"""The end of an instance: what its metadata says, what is made of it, and the answer to the hook that waits."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrgc.errors import ConfigError
from tests.departure.aws import INSTANCE, SPOT, AutoScaling, Imds
from worker import departure, instance_metadata
from worker.departure import Departure
from worker.departure_policy import REBALANCE_PATH, SPOT_PATH, STATE_PATH, Cause, cause_of
from worker.instance_metadata import MAX_ANSWER_BYTES, InstanceMetadata, MetadataError
from worker.settings import DepartureSettings, WorkerSettings

ENVIRON = {
    "MRGC_QUEUE_URL": "redis://h/0",
    "MRGC_BROKER_URL": "redis://h/1",
    "MRGC_RESULTS_URL": "file:///tmp/",
    "MRGC_REGISTRY": "/tenants.toml",
    "MRGC_ENGINES": "unix:/run/engine.sock",
}


@pytest.fixture
def imds() -> Iterator[Imds]:
    """A metadata service of the test's own."""
    imds = Imds()
    yield imds
    imds.close()


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Iterator[AutoScaling]:
    """An Auto Scaling endpoint that boto3 is led to."""
    scaling = AutoScaling()
    monkeypatch.setenv("AWS_ENDPOINT_URL_AUTO_SCALING", scaling.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    yield scaling
    scaling.close()


# --- the metadata service ------------------------------------------------------------------------------------------


def test_a_value_is_read_with_a_token_and_the_token_is_kept(imds: Imds) -> None:
    """One PUT serves many reads; a path that is not there is None."""
    client = InstanceMetadata(imds.url)
    assert client.get("instance-id") == INSTANCE["instance-id"]
    assert client.get(SPOT_PATH) is None
    assert len(imds.tokens) == 1


def test_an_expired_token_is_renewed(imds: Imds) -> None:
    """A 401 asks for a new token, once; the caller notices nothing."""
    client = InstanceMetadata(imds.url)
    client.get("instance-id")
    imds.tokens = {"another"}
    assert client.get("instance-id") == INSTANCE["instance-id"]


@pytest.mark.parametrize("status", [302, 403, 500, 503])
def test_an_answer_that_is_neither_yes_nor_no_is_an_error(imds: Imds, status: int) -> None:
    """Redirections are not followed, and no status but 404 means that there is nothing."""
    imds.status = status
    with pytest.raises(MetadataError):
        InstanceMetadata(imds.url).get("instance-id")


def test_a_service_that_never_answers_costs_a_bounded_time(imds: Imds, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is taken and left without an answer is an error after CALL_S."""
    monkeypatch.setattr(instance_metadata, "CALL_S", 0.2)
    imds.answers.clear()
    with pytest.raises(MetadataError):
        InstanceMetadata(imds.url).get("instance-id")


def test_an_endless_answer_is_not_read_to_its_end(imds: Imds) -> None:
    """At most 4 KiB of an answer are kept."""
    imds.values["instance-id"] = "i" * (MAX_ANSWER_BYTES + 1)
    with pytest.raises(MetadataError):
        InstanceMetadata(imds.url).get("instance-id")


def test_a_service_that_is_not_there_is_an_error() -> None:
    """A refused connection is told as such, and what answers with no HTTP as well."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(MetadataError):
        InstanceMetadata(f"http://127.0.0.1:{port}").get("instance-id")


# --- the policy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spot", "state", "rebalance", "cause"),
    [
        (None, None, None, None),
        (SPOT, None, None, Cause.SPOT),
        ('{"action": "stop", "time": "2026-01-01T00:00:00Z"}', "InService", None, Cause.SPOT),
        ('{"action": "hibernate", "time": "2026-01-01T00:00:00Z"}', None, None, Cause.SPOT),
        (None, "Terminated", None, Cause.LIFECYCLE),
        (SPOT, "Terminated\n", None, Cause.LIFECYCLE),
        (None, "Warmed:Terminated", None, Cause.LIFECYCLE),
        (None, "Warmed:Stopped", None, None),
        (None, "Detached", None, None),
        (None, "InService", '{"noticeTime": "2026-01-01T00:00:00Z"}', Cause.REBALANCE),
        ("<html>", "<html>", "<html>", None),
        ('{"action": 5}', None, "[]", None),
        ("[" * 4_000, None, None, None),
    ],
)
def test_what_each_answer_means(
    spot: str | None, state: str | None, rebalance: str | None, cause: Cause | None
) -> None:
    """Only what AWS documents as an end is one; a hook that waits comes first."""
    assert cause_of(spot=spot, state=state, rebalance=rebalance) is cause


@given(st.none() | st.text(), st.none() | st.text(), st.none() | st.text())
def test_no_answer_makes_the_policy_fail(spot: str | None, state: str | None, rebalance: str | None) -> None:
    """Whatever text stands there is an end or none."""
    assert cause_of(spot=spot, state=state, rebalance=rebalance) in (None, *Cause)


# --- the watch -----------------------------------------------------------------------------------------------------


def test_a_notice_is_seen_once_and_a_silent_service_is_survived(imds: Imds, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch asks on while the service is unwell, and calls once when it tells of the end."""
    monkeypatch.setattr(departure, "LOOK_S", 0.02)
    monkeypatch.setattr(instance_metadata, "CALL_S", 0.2)
    imds.status = 503
    left, stop = threading.Event(), threading.Event()
    watch = threading.Thread(target=Departure(DepartureSettings(imds.url)).watch, args=(left.set, stop))
    watch.start()
    deadline_s = time.monotonic() + 10
    while len(imds.asked) < 3 and time.monotonic() < deadline_s:
        stop.wait(0.02)
    assert not left.is_set()
    imds.values[SPOT_PATH], imds.status = SPOT, None
    assert left.wait(10)
    watch.join(10)
    assert not watch.is_alive()


def test_a_rebalance_recommendation_counts_only_where_it_is_asked_for(imds: Imds) -> None:
    """It may come long before an interruption or without one, so it is off unless the operator says so."""
    imds.values[REBALANCE_PATH] = '{"noticeTime": "2026-01-01T00:00:00Z"}'
    assert not Departure(DepartureSettings(imds.url)).look()
    assert REBALANCE_PATH not in imds.asked
    assert Departure(DepartureSettings(imds.url, on_rebalance=True)).look()


def test_the_hook_is_answered_after_the_drain_and_once(imds: Imds, scaling: AutoScaling) -> None:
    """CompleteLifecycleAction names group, hook and instance, signed for the instance's region, and says CONTINUE."""
    imds.values[STATE_PATH] = "Terminated"
    found = Departure(DepartureSettings(imds.url, group="gpu fleet/1", hook="drain"))
    assert found.look()
    assert scaling.completed == []
    found.drained()
    found.drained()
    assert scaling.completed == [
        {
            "AutoScalingGroupName": "gpu fleet/1",
            "LifecycleHookName": "drain",
            "InstanceId": INSTANCE["instance-id"],
            "LifecycleActionResult": "CONTINUE",
        }
    ]


def test_nobody_is_answered_where_no_hook_waits(imds: Imds, scaling: AutoScaling) -> None:
    """A spot notice has no hook, nor has a worker that was given none."""
    imds.values[SPOT_PATH] = SPOT
    spot = Departure(DepartureSettings(imds.url, group="g", hook="h"))
    assert spot.look()
    spot.drained()
    imds.values[STATE_PATH] = "Terminated"
    hookless = Departure(DepartureSettings(imds.url))
    assert hookless.look()
    hookless.drained()
    assert scaling.completed == []


def test_a_group_that_refuses_or_is_away_delays_nothing(imds: Imds, scaling: AutoScaling) -> None:
    """The hook's own time limit ends it; the drain goes on."""
    imds.values[STATE_PATH] = "Terminated"
    found = Departure(DepartureSettings(imds.url, group="g", hook="h"))
    scaling.refuses = True
    assert found.look()
    found.drained()
    scaling.close()
    assert found.look()
    found.drained()
    assert scaling.completed == []


# --- settings ------------------------------------------------------------------------------------------------------


def test_there_is_no_watch_without_metadata() -> None:
    """Off the instance nothing is asked; with its address the rest has defaults."""
    assert WorkerSettings.from_env(ENVIRON).departure is None
    found = WorkerSettings.from_env(ENVIRON | {"MRGC_IMDS": "http://169.254.169.254"}).departure
    assert found == DepartureSettings("http://169.254.169.254", group="", hook="", on_rebalance=False)
    assert WorkerSettings.from_env(ENVIRON | {"MRGC_IMDS": "http://[fd00:ec2::254]"}).departure is not None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"MRGC_IMDS": "https://169.254.169.254"}, "MRGC_IMDS"),
        ({"MRGC_IMDS": "http://169.254.169.254/latest"}, "MRGC_IMDS"),
        ({"MRGC_IMDS": "http://u@h"}, "MRGC_IMDS"),
        ({"MRGC_LIFECYCLE_HOOK": "h", "MRGC_AUTOSCALING_GROUP": "g"}, "MRGC_IMDS"),
        ({"MRGC_DRAIN_ON_REBALANCE": "1"}, "MRGC_IMDS"),
        ({"MRGC_IMDS": "http://h", "MRGC_LIFECYCLE_HOOK": "h"}, "MRGC_AUTOSCALING_GROUP"),
        ({"MRGC_IMDS": "http://h", "MRGC_AUTOSCALING_GROUP": "g"}, "MRGC_LIFECYCLE_HOOK"),
        ({"MRGC_IMDS": "http://h", "MRGC_LIFECYCLE_HOOK": "a b", "MRGC_AUTOSCALING_GROUP": "g"}, "MRGC_LIFECYCLE_HOOK"),
        ({"MRGC_IMDS": "http://h", "MRGC_DRAIN_ON_REBALANCE": "yes"}, "MRGC_DRAIN_ON_REBALANCE"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_at_start(changes: dict[str, str], named: str) -> None:
    """Each names its variable."""
    with pytest.raises(ConfigError, match=named):
        WorkerSettings.from_env(ENVIRON | changes)
