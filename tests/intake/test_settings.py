"""Every knob: its default, and the error that names it."""

from __future__ import annotations

import pytest

from mrgc.errors import ConfigError
from worker.settings import AgentSettings, EdgeSettings, EngineSettings, HttpAddress, WorkerSettings

WORKER = {
    "MRGC_QUEUE_URL": "redis://:secret-1@localhost/0",
    "MRGC_BROKER_URL": "redis://:secret-2@localhost/1",
    "MRGC_RESULTS_URL": "file:///results/",
    "MRGC_REGISTRY": "/etc/mrgc/tenants.toml",
    "MRGC_ENGINES": "unix:/run/a.sock,unix:/run/b.sock",
}
ENGINE = {
    "MRGC_ENGINE": "unix:/run/engine.sock",
    "MRGC_ENCLAVE": "vsock:16:5000",
    "MRGC_TOKEN_FILE": "/run/token",
    "MRGC_MODELS": "/models",
}
AGENT = {"MRGC_ENCLAVE": "unix:/run/enclave.sock", "MRGC_TOKEN_FILE": "/run/token"}


def test_required_settings_are_enough() -> None:
    """Each process starts on its required settings, everything else having a default."""
    worker = WorkerSettings.from_env(WORKER)
    assert worker.engines == ("unix:/run/a.sock", "unix:/run/b.sock")
    assert (worker.lease_s, worker.max_batch_jobs, worker.max_wait_ms, worker.drain_s) == (30.0, 64, 5.0, 20.0)
    assert worker.http is None
    assert EngineSettings.from_env(ENGINE).dtype == "auto"
    assert AgentSettings.from_env(AGENT).json_protocol is False
    assert EdgeSettings.from_env(WORKER).queue_url == WORKER["MRGC_QUEUE_URL"]


def test_every_setting_is_read() -> None:
    """What is set is what counts, and an empty variable is an absent one."""
    worker = WorkerSettings.from_env(
        WORKER
        | {
            "MRGC_WORKER_HTTP": "127.0.0.1:9000",
            "MRGC_LEASE_S": "2.5",
            "MRGC_MAX_BATCH_JOBS": "7",
            "MRGC_MAX_BATCH_BYTES": "2000000",
            "MRGC_MAX_WAIT_MS": "0",
            "MRGC_MAX_INFLIGHT_JOBS": "70",
            "MRGC_MAX_INFLIGHT_BYTES": "3000000",
            "MRGC_MAX_BODY_BYTES": "1000000",
            "MRGC_DRAIN_S": "",
            "MRGC_NOTICES": "off",
            "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:5000",
        }
    )
    assert worker.http == HttpAddress("127.0.0.1", 9000)
    assert (worker.lease_s, worker.max_batch_jobs, worker.max_batch_bytes) == (2.5, 7, 2_000_000)
    assert (worker.max_wait_ms, worker.max_inflight_jobs, worker.max_inflight_bytes) == (0.0, 70, 3_000_000)
    assert worker.notices == "off"
    assert (worker.max_body_bytes, worker.drain_s, worker.s3_endpoint) == (1_000_000, 20.0, "http://127.0.0.1:5000")
    assert AgentSettings.from_env(AGENT | {"MRGC_JSON_PROTOCOL": "1"}).json_protocol is True


@pytest.mark.parametrize("name", WORKER)
def test_a_missing_setting_is_named(name: str) -> None:
    """No required setting has a silent default."""
    with pytest.raises(ConfigError, match=name):
        WorkerSettings.from_env({key: value for key, value in WORKER.items() if key != name})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MRGC_LEASE_S", "nan"),
        ("MRGC_LEASE_S", "-1"),
        ("MRGC_LEASE_S", "soon"),
        ("MRGC_MAX_BATCH_JOBS", "1.5"),
        ("MRGC_MAX_BATCH_JOBS", "1025"),
        ("MRGC_MAX_BATCH_JOBS", "0"),
        ("MRGC_MAX_BODY_BYTES", "33554433"),
        ("MRGC_MAX_BATCH_BYTES", "1000000"),  # holds no job of the default body cap
        ("MRGC_MAX_INFLIGHT_BYTES", "2000000"),  # holds no batch
        ("MRGC_MAX_INFLIGHT_BYTES", "1048575"),  # holds no message
        ("MRGC_MAX_INFLIGHT_JOBS", "63"),  # holds no batch
        ("MRGC_RESULTS_URL", "/results"),
        ("MRGC_RESULTS_URL", "s3://bucket/prefix"),  # a prefix ends in a slash
        ("MRGC_ENGINES", "unix:/run/a.sock,unix:/run/a.sock"),
        ("MRGC_ENGINES", "vsock:16:5000"),
        ("MRGC_WORKER_HTTP", "localhost"),
        ("MRGC_WORKER_HTTP", "localhost:70000"),
    ],
)
def test_a_wrong_worker_setting_is_named_and_not_shown(name: str, value: str) -> None:
    """The error names the variable; a value may be a secret in the wrong place."""
    with pytest.raises(ConfigError) as caught:
        WorkerSettings.from_env(WORKER | {name: value})
    assert name.startswith("MRGC_ENGINES") or name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MRGC_ENGINE", "vsock:16:5000"),
        ("MRGC_ENCLAVE", "vsock:2:5000"),
        ("MRGC_DTYPE", "fp8"),
        ("MRGC_DEVICE", "tpu"),
        ("MRGC_MODEL_MEMORY_BYTES", "-1"),
        ("MRGC_MODEL_MEMORY_BYTES", "2GB"),
        ("MRGC_MODEL_HANDLERS", "*"),
        ("MRGC_MODEL_HANDLERS", "one,"),
    ],
)
def test_a_wrong_engine_setting_is_refused(name: str, value: str) -> None:
    """The engine listens on a unix socket only, and never talks to the host's own vsock address."""
    with pytest.raises(ConfigError):
        EngineSettings.from_env(ENGINE | {name: value})


def test_passwords_are_not_shown() -> None:
    """The settings object may be logged or printed without its URLs' passwords."""
    assert "secret" not in repr(WorkerSettings.from_env(WORKER))
    assert "secret" not in repr(EdgeSettings.from_env(WORKER))
