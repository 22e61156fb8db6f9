"""Lines in the embedded metric format: every one follows the published rules, and says what was measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrgc.errors import ConfigError
from tests.tasks.emf_rules import checked
from worker import emf
from worker.settings import EdgeSettings
from worker.sources.base import Backlog

ENVIRON = {"MRGC_QUEUE_URL": "redis://h/0", "MRGC_REGISTRY": "/tenants.toml"}

_COUNTS = st.integers(0, 2**53)
_BACKLOGS = st.builds(Backlog, _COUNTS, _COUNTS, st.none() | st.floats(0, 1e12, allow_nan=False), _COUNTS)
_TENANTS = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True) | st.just("*")


@given(
    st.dictionaries(_TENANTS, _BACKLOGS, max_size=20), st.integers(0, 10_000), st.floats(0, 4e9), st.just("mrgc/prod")
)
def test_every_line_follows_the_published_rules(
    measured: dict[str, Backlog], unmeasured: int, now_s: float, namespace: str
) -> None:
    """Whatever was measured, CloudWatch takes each line in, with its time in milliseconds."""
    for line in emf.backlog_lines(measured, namespace=namespace, unmeasured=unmeasured, now_s=now_s):
        document = checked(line)
        (directive,) = document["_aws"]["CloudWatchMetrics"]
        assert directive["Namespace"] == namespace
        assert document["_aws"]["Timestamp"] == int(now_s * 1_000)
        assert {metric["Name"] for metric in directive["Metrics"]} <= set(emf.METRICS)


def test_a_tenant_has_a_line_and_all_have_one_together() -> None:
    """Dimensions are Service and Tenant, then Service alone: the sums, the greatest age, and who was left out."""
    measured = {"acme": Backlog(7, 2, 3.5, 1), "globex": Backlog(1, 0, 90.0, 0)}
    acme, globex, everything = map(
        checked, emf.backlog_lines(measured, namespace="mrgc", unmeasured=4, now_s=1_700_000_000.25)
    )
    assert acme["_aws"] == {
        "Timestamp": 1_700_000_000_250,
        "CloudWatchMetrics": [
            {
                "Namespace": "mrgc",
                "Dimensions": [["Service", "Tenant"]],
                "Metrics": [
                    {"Name": "BacklogJobs", "Unit": "Count"},
                    {"Name": "BacklogPending", "Unit": "Count"},
                    {"Name": "OldestMessageAge", "Unit": "Seconds"},
                    {"Name": "DeadLetters", "Unit": "Count"},
                ],
            }
        ],
    }
    assert (acme["Service"], acme["Tenant"], globex["Tenant"]) == ("mrgc", "acme", "globex")
    assert (acme["BacklogJobs"], acme["BacklogPending"], acme["OldestMessageAge"], acme["DeadLetters"]) == (
        7,
        2,
        3.5,
        1,
    )
    assert everything["_aws"]["CloudWatchMetrics"][0]["Dimensions"] == [["Service"]]
    assert "Tenant" not in everything
    assert (everything["BacklogJobs"], everything["OldestMessageAge"], everything["TenantsUnmeasured"]) == (8, 90.0, 4)


def test_an_age_that_the_broker_does_not_tell_is_left_out() -> None:
    """SQS gives no age, and no number stands for that: neither of the tenant nor of all."""
    measured = {"acme": Backlog(7, 2, None, 1), "globex": Backlog(0, 0, 0.0, 0)}
    acme, globex, everything = map(checked, emf.backlog_lines(measured, namespace="mrgc", unmeasured=0, now_s=1.0))
    assert "OldestMessageAge" not in acme
    assert globex["OldestMessageAge"] == 0
    assert "OldestMessageAge" not in everything


def test_health_is_one_or_nothing() -> None:
    """A worker that would serve is a 1, one that would not is a 0."""
    for is_ready in (True, False):
        document = checked(emf.health_line(is_ready=is_ready, namespace="mrgc", now_s=1.0))
        assert document["WorkerReady"] == int(is_ready)


@pytest.mark.parametrize("namespace", ["AWS/SQS", "a:b", "two words", "x" * 256, "ümlaut"])
def test_a_namespace_that_cloudwatch_refuses_is_refused_at_start(namespace: str) -> None:
    """The variable is named; without it no line is written."""
    with pytest.raises(ConfigError, match="MRGC_EMF_NAMESPACE"):
        EdgeSettings.from_env(ENVIRON | {"MRGC_EMF_NAMESPACE": namespace})
    assert EdgeSettings.from_env(ENVIRON).emf_namespace == ""
    assert EdgeSettings.from_env(ENVIRON | {"MRGC_EMF_NAMESPACE": "mrgc/eu"}).emf_namespace == "mrgc/eu"
