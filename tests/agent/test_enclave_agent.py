from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from enclave.nsm import NsmError
from infra.local_nsm import LocalNsm
from mrgc.errors import ConfigError
from mrgc.wire import enclave_protocol
from mrgc.wire.enclave_protocol import Credentials, Hello, Use
from tests.enclave.stack import PCRS, REPOSITORY, TOKEN, Kms, RunningEnclave
from tests.waiting import until
from worker import enclave_agent
from worker.agent_metrics import EnclaveCollector
from worker.agent_policy import ROLE_LIFETIME_S, ROLE_RESEND_S, STATIC_LIFETIME_S, STATIC_RESEND_S
from worker.enclave_agent import Agent, CredentialSource, Supply, exporting
from worker.settings import AgentSettings, HttpAddress
from worker.token_file import read_token

SECRETS = ("service-secret", "service-session")


class Role(CredentialSource):
    """A source whose credentials a test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.supply: Supply | None = Supply(
            Credentials("AKSERVICE", "service-secret", "service-session", int(time.time()) + 600), 150.0
        )
        self.asked = 0

    def current(self) -> Supply | None:
        """Return what the test has set."""
        self.asked += 1
        return self.supply


@contextmanager
def agent_of(path: Path, token_file: Path, source: CredentialSource) -> Iterator[EnclaveCollector]:
    """Run an agent in a thread of this process."""
    collector, stop = EnclaveCollector(), threading.Event()
    agent = Agent(AgentSettings(f"unix:{path}", token_file), source, collector)
    thread = threading.Thread(target=agent.run, args=(stop,))
    thread.start()
    try:
        yield collector
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watch the enclave every few milliseconds."""
    monkeypatch.setattr(enclave_agent, "POLL_S", 0.01)


def is_serving(collector: EnclaveCollector) -> Callable[[], bool]:
    """Return whether the agent has seen its enclave locked and supplied."""
    return lambda: (health := collector.snapshot.health) is not None and health.hello and health.kms_ready


def test_a_new_boot_is_locked_and_supplied(enclave: RunningEnclave, kms: Kms, tmp_path: Path) -> None:
    """The agent alone makes a fresh enclave serve whoever reads the token file."""
    token_file = tmp_path / "token"
    with agent_of(enclave.path, token_file, Role()) as collector:
        until(is_serving(collector), within_s=10, what="the enclave to be ready")
        with enclave.caller() as engine:
            token = read_token(token_file)
            assert token is not None
            assert engine.hello(token) is None
            assert engine.open_codes([kms.data_key().job()]) == ["ok"]


def test_the_token_is_in_the_file_before_the_enclave_is_locked(
    enclave: RunningEnclave, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that sees hello in health finds the right token in the file."""
    seen = []
    hello = enclave_agent.EnclaveLink.hello

    def check(link: enclave_agent.EnclaveLink, said: Hello) -> None:
        seen.append(read_token(tmp_path / "token") == said.token)
        hello(link, said)

    monkeypatch.setattr(enclave_agent.EnclaveLink, "hello", check)
    with agent_of(enclave.path, tmp_path / "token", Role()) as collector:
        until(is_serving(collector), within_s=10, what="the enclave to be ready")
    assert seen == [True]


def test_a_restarted_agent_uses_the_token_of_the_file(enclave: RunningEnclave, tmp_path: Path) -> None:
    """With the enclave still up, the next agent joins with the same token: engines notice nothing."""
    token_file = tmp_path / "token"
    with agent_of(enclave.path, token_file, Role()) as collector:
        until(is_serving(collector), within_s=10, what="the first agent")
    first = read_token(token_file)
    source = Role()
    with agent_of(enclave.path, token_file, source) as collector:
        until(lambda: "jobs_opened" in collector.snapshot.counters, within_s=10, what="the second agent")
    assert read_token(token_file) == first
    assert source.asked == 1


def test_a_restarted_enclave_gets_a_new_token(tmp_path: Path, pki: Path, kms: Kms) -> None:
    """Every boot has a token of its own, and credentials are sent to each."""
    path, token_file = tmp_path / "e.sock", tmp_path / "token"
    source, nsm = Role(), LocalNsm(pki, PCRS)
    with agent_of(path, token_file, source) as collector:
        with RunningEnclave(path, nsm, kms):
            until(is_serving(collector), within_s=10, what="the first boot")
            first, boot = read_token(token_file), collector.snapshot.health
        until(lambda: collector.snapshot.health is None, within_s=10, what="the loss to be noticed")
        with RunningEnclave(path, nsm, kms):
            until(is_serving(collector), within_s=10, what="the second boot")
            assert boot is not None
            assert collector.snapshot.health is not None
            assert collector.snapshot.health.boot != boot.boot
    assert read_token(token_file) not in (first, None)
    assert source.asked == 2


def test_an_enclave_locked_by_others_is_reported_and_left_alone(enclave: RunningEnclave, tmp_path: Path) -> None:
    """Without the token of this boot the agent says so, sends no credentials, and keeps its file as it is."""
    token_file = tmp_path / "token"
    token_file.write_bytes(b"\x55" * 32)
    with enclave.caller() as thief:
        assert thief.hello(TOKEN) is None
    source = Role()
    with agent_of(enclave.path, token_file, source) as collector:
        until(lambda: collector.snapshot.is_locked_out, within_s=10, what="the agent to notice")
        metrics = {m.name: m.samples[0].value for m in collector.collect() if m.samples}
    assert (metrics["mrgc_enclave_locked_out"], metrics["mrgc_enclave_up"]) == (1, 1)
    assert source.asked == 0
    assert read_token(token_file) == b"\x55" * 32


def test_credentials_are_sent_again_before_they_expire(enclave: RunningEnclave, tmp_path: Path) -> None:
    """The enclave always holds what the source gave last; while the source has nothing the agent keeps asking."""
    source = Role()
    good, source.supply = source.supply, None
    with agent_of(enclave.path, tmp_path / "token", source) as collector:
        until(lambda: source.asked > 3, within_s=10, what="the agent to keep asking")
        assert collector.snapshot.health is not None
        assert not collector.snapshot.health.kms_ready
        assert good is not None
        source.supply = good._replace(resend_s=0.05)
        until(is_serving(collector), within_s=10, what="the credentials to arrive")
        source.supply = Supply(good.credentials._replace(expires=1), 0.05)
        until(lambda: not is_serving(collector)(), within_s=10, what="the newer credentials to arrive")


def test_the_default_chain_gives_static_credentials_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Static credentials never expire by themselves: an hour, renewed every quarter of one."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKSTATIC")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    supply = CredentialSource().current()
    assert supply is not None
    assert supply.credentials[:3] == ("AKSTATIC", "secret", "")
    assert abs(supply.credentials.expires - time.time() - STATIC_LIFETIME_S) < 60
    assert supply.resend_s == STATIC_RESEND_S < STATIC_LIFETIME_S


def test_the_default_chain_gives_role_credentials_ten_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Botocore renews a role's credentials in time, so what it hands out is good for ten minutes."""
    script = tmp_path / "role.py"
    expiry = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3_600))
    role = {"Version": 1, "AccessKeyId": "AKROLE", "SecretAccessKey": "s", "SessionToken": "t", "Expiration": expiry}
    script.write_text(f"print({json.dumps(json.dumps(role))})")
    config = tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = {sys.executable} {script}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    supply = CredentialSource().current()
    assert supply is not None
    assert supply.credentials[:3] == ("AKROLE", "s", "t")
    assert abs(supply.credentials.expires - time.time() - ROLE_LIFETIME_S) < 60
    assert supply.resend_s == ROLE_RESEND_S < ROLE_LIFETIME_S


def test_without_credentials_there_is_no_supply() -> None:
    """No credentials anywhere is not an error of the agent."""
    assert CredentialSource().current() is None


def test_settings_that_cannot_work_end_the_agent(enclave: RunningEnclave, tmp_path: Path) -> None:
    """A token file that cannot be written is a ConfigError, not a retry."""
    settings = AgentSettings(f"unix:{enclave.path}", tmp_path / "absent" / "token")
    with pytest.raises(ConfigError):
        Agent(settings, Role(), EnclaveCollector()).run(threading.Event())


@contextmanager
def process(env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run the agent as production does."""
    full = {"PATH": os.environ["PATH"], "AWS_EC2_METADATA_DISABLED": "true"} | env
    with subprocess.Popen(
        [sys.executable, "-m", "worker.enclave_agent"], cwd=REPOSITORY, env=full, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def page(port: int) -> str:
    """Scrape the agent; empty while it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text: str = answer.read().decode()
            return text
    except OSError:
        return ""


def values(text: str) -> dict[str, float]:
    """Read Prometheus' text: name and labels → value."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def documented() -> dict[str, str]:
    """Read the agent's metrics and their types from docs/operations.md."""
    text = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8").split("Metrics of the agent")[1]
    rows = re.findall(r"^\| (`mrgc_enclave_.*?) \| (\w+) \|", text.split("\n## ")[0], re.MULTILINE)
    return {name: kind for names, kind in rows for name in re.findall(r"`(\w+)`", names)}


class FailingNsm(LocalNsm):
    """An NSM that makes no document when told so."""

    works = True

    def attest(self, *, public_key: bytes | None, user_data: bytes | None, nonce: bytes | None) -> bytes:
        """Sign, or fail."""
        if not self.works:
            raise NsmError("nsm request failed")
        return super().attest(public_key=public_key, user_data=user_data, nonce=nonce)


def test_latency_success_connections_and_state_can_be_read_from_a_scrape(
    tmp_path: Path, pki: Path, kms: Kms, unused_tcp_port: int
) -> None:
    """Attestation and KMS each have calls, failures and seconds; all that is exported is documented, and no more."""
    nsm = FailingNsm(pki, PCRS)
    source, address = Role(), HttpAddress("127.0.0.1", unused_tcp_port)
    with (
        RunningEnclave(tmp_path / "e.sock", nsm, kms) as running,
        agent_of(running.path, tmp_path / "token", source) as collector,
        exporting(collector, address),
    ):
        until(is_serving(collector), within_s=10, what="the enclave to be ready")
        with running.caller() as engine:
            engine.hello(read_token(tmp_path / "token") or b"")
            refused = kms.data_key(key_arn=kms.create_key(pcr0=bytes([9]) * 48))
            assert engine.open_codes([kms.data_key().job(), refused.job()]) == ["ok", "key_access"]
            ask = enclave_protocol.attest_request(1, enclave_protocol.AttestRequest(bytes(16), Use.IDENTITY))
            assert engine.code(ask) is None
            nsm.works = False
            assert engine.code(ask) == "internal"
            nsm.works = True
            until(
                lambda: values(page(unused_tcp_port)).get("mrgc_enclave_attestations_total") == 3,
                within_s=10,
                what="the counters",
            )
            text = page(unused_tcp_port)
    found = values(text)
    assert (found["mrgc_enclave_kms_calls_total"], found["mrgc_enclave_kms_failures_total"]) == (2, 1)
    assert (found["mrgc_enclave_attestations_total"], found["mrgc_enclave_attestation_failures_total"]) == (3, 1)
    assert found["mrgc_enclave_kms_seconds_total"] > 0
    assert found["mrgc_enclave_attestation_seconds_total"] > 0
    assert found["mrgc_enclave_connections"] == 2
    state = ("up", "attestation_ready", "kms_ready", "locked_out")
    assert [found[f"mrgc_enclave_{name}"] for name in state] == [1, 1, 1, 0]
    # The page's text format adds _total to a counter and _info to an info, which it calls a gauge.
    exported = {
        name.removesuffix("_total").removesuffix("_info"): "info" if name.endswith("_info") else kind
        for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE)
    }
    assert exported == documented()
    assert "another version" not in text


def test_the_process_exports_counters_logs_no_secret_and_ends_on_sigterm(
    enclave: RunningEnclave, kms: Kms, tmp_path: Path, unused_tcp_port: int
) -> None:
    """Statement 8: the agent's process serves Prometheus, keeps secrets out of its log, and stops at once."""
    token_file = tmp_path / "token"
    settings = {
        "MRGC_ENCLAVE": f"unix:{enclave.path}",
        "MRGC_TOKEN_FILE": str(token_file),
        "MRGC_AGENT_HTTP": f"127.0.0.1:{unused_tcp_port}",
        "AWS_ACCESS_KEY_ID": "AKSERVICE",
        "AWS_SECRET_ACCESS_KEY": "service-secret",
        "AWS_SESSION_TOKEN": "service-session",
    }

    def scrape() -> dict[str, float]:
        return values(page(unused_tcp_port))

    with process(settings) as running:
        until(lambda: scrape().get("mrgc_enclave_kms_ready") == 1, within_s=20, what="the enclave to be ready")
        with enclave.caller() as engine:
            engine.hello(read_token(token_file) or b"")
            key = kms.data_key()
            engine.open([key.job(), key.job(floor=2)])
        until(lambda: scrape().get("mrgc_enclave_jobs_opened_total") == 1, within_s=10, what="the counters")
        found = scrape()
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == 0
        assert running.stderr is not None
        log = running.stderr.read()
    assert found['mrgc_enclave_jobs_refused_total{code="trust_floor"}'] == 1
    assert found["mrgc_enclave_kms_calls_total"] == found["mrgc_enclave_open_batches_total"] == 1
    assert found["mrgc_enclave_up"] == found["mrgc_enclave_attestation_ready"] == 1
    assert found["mrgc_enclave_key_cache_entries"] == 1
    assert found["mrgc_enclave_kms_seconds_total"] > 0
    assert found["mrgc_enclave_attestations_total"] >= 1
    assert any(re.fullmatch(r'mrgc_enclave_boot_info\{id="[0-9a-f]{16}"\}', name) for name in found)
    assert all(json.loads(line)["process"] == "agent" for line in log.splitlines())
    assert not any(secret in log for secret in (*SECRETS, (read_token(token_file) or b"").hex()))


def test_a_missing_setting_ends_the_process_with_its_name(tmp_path: Path) -> None:
    """A setting that is missing is named on standard error, and the exit code says configuration."""
    with process({"MRGC_TOKEN_FILE": str(tmp_path / "token")}) as running:
        assert running.wait(20) == 2
        assert running.stderr is not None
        assert "MRGC_ENCLAVE" in running.stderr.read()
