"""The enclave's agent on the parent: `python -m worker.enclave_agent`.

It watches the enclave over one long-lived connection, locks each new boot with a fresh token that only the engines may
read, keeps it supplied with KMS credentials, and exports its counters. It never sees a job, a plaintext or a data key.
What to do next is decided in `worker.agent_policy`.

May import: the standard library, boto3, botocore, prometheus_client, structlog, mrgc.errors, mrgc.wire, worker.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NamedTuple

import boto3.session
import structlog
from botocore.credentials import RefreshableCredentials
from botocore.exceptions import BotoCoreError
from prometheus_client import start_http_server
from prometheus_client.registry import CollectorRegistry

from mrgc.errors import ConfigError, EnclaveProtocolError, MrgcError, TokenError
from mrgc.wire import enclave_protocol, frames
from mrgc.wire.addresses import connect, parse_address
from mrgc.wire.enclave_protocol import TOKEN_BYTES, Credentials, Health, Hello, Op
from mrgc.wire.frames import Frame
from mrgc.wire.strict_cbor import Buffer
from worker import agent_policy, logs
from worker.agent_metrics import EnclaveCollector, Snapshot
from worker.agent_policy import Step, View, next_step
from worker.settings import AgentSettings, HttpAddress
from worker.token_file import read_token, write_token

POLL_S: Final = 1.0  #: How soon a new boot of the enclave is noticed at the latest.
RETRY_S: Final = (0.05, 1.0)  #: First and longest wait before connecting again: a boot is noticed at once.
ANSWER_S: Final = 5.0  #: Every request of the agent is small; the enclave answers it in milliseconds.


class Supply(NamedTuple):
    """Credentials for the enclave, and after how many seconds to send them again."""

    credentials: Credentials
    resend_s: float


class CredentialSource:
    """Credentials of boto3's default chain: the instance's role in production."""

    def __init__(self) -> None:
        self._session = boto3.session.Session()

    def current(self) -> Supply | None:
        """Return credentials that stay valid until their `expires`; None when there are none now."""
        try:
            found = self._session.get_credentials()
            frozen = found.get_frozen_credentials() if found is not None else None
        except BotoCoreError as error:
            structlog.get_logger().warning("credentials cannot be had", exc_info=error)
            return None
        if frozen is None or not frozen.access_key or not frozen.secret_key:
            return None
        lifetime_s, resend_s = agent_policy.STATIC_LIFETIME_S, agent_policy.STATIC_RESEND_S
        if isinstance(found, RefreshableCredentials):
            lifetime_s, resend_s = agent_policy.ROLE_LIFETIME_S, agent_policy.ROLE_RESEND_S
        expires = int(time.time()) + lifetime_s
        return Supply(Credentials(frozen.access_key, frozen.secret_key, frozen.token or "", expires), resend_s)


class EnclaveLink:
    """Requests to the enclave over one connection, one after the other."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._id = 0

    def health(self) -> Health:
        """Ask how the enclave is."""
        return enclave_protocol.parse_health(self._ask(enclave_protocol.plain_request(self._next_id(), Op.HEALTH)))

    def counters(self) -> dict[str, int]:
        """Ask for the counters."""
        return enclave_protocol.parse_metrics(self._ask(enclave_protocol.plain_request(self._next_id(), Op.METRICS)))

    def hello(self, hello: Hello) -> None:
        """Say hello. Raises TokenError when the enclave was locked with another token."""
        request = enclave_protocol.hello_request(self._next_id(), hello)
        enclave_protocol.ensure_success(self._ask(request), Op.HELLO)

    def send(self, credentials: Credentials) -> None:
        """Hand over credentials."""
        request = enclave_protocol.credentials_request(self._next_id(), credentials)
        enclave_protocol.ensure_success(self._ask(request), Op.CREDENTIALS)

    def _next_id(self) -> int:
        self._id += 1
        return self._id

    def _ask(self, request: list[Buffer]) -> Frame:
        frames.send(self._sock, request)
        answer = frames.recv(self._sock)
        # A connection that cannot be served is told so in a frame that answers no request of ours.
        if answer.id != self._id and "code" not in answer.header:
            raise EnclaveProtocolError("answer to another request")
        return answer


class Agent:
    """Keeps one enclave locked, supplied and watched.

    Args:
        settings: addresses and files.
        source: where credentials come from.
        collector: gets the newest snapshot.
    """

    def __init__(self, settings: AgentSettings, source: CredentialSource, collector: EnclaveCollector) -> None:
        self._settings = settings
        self._source = source
        self._collector = collector
        self._log = structlog.get_logger()
        self._boot = ""
        self._sent_s: float | None = None
        self._resend_s = 0.0
        self._is_lost = self._is_unsupplied = False

    def run(self, stop: threading.Event) -> None:
        """Watch until `stop` is set.

        Raises:
            ConfigError: a setting makes the work impossible, whatever the enclave does.
        """
        retry_s = RETRY_S[0]
        while not stop.is_set():
            try:
                with connect(parse_address(self._settings.enclave), timeout_s=ANSWER_S) as sock:
                    self._watch(EnclaveLink(sock), stop)
            except ConfigError:
                raise
            except (OSError, MrgcError) as error:
                self._collector.snapshot = Snapshot()
                if not self._is_lost:
                    self._log.warning("enclave lost", exc_info=error)
                    retry_s = RETRY_S[0]
                self._is_lost = True
                stop.wait(retry_s)
                retry_s = min(2 * retry_s, RETRY_S[1])

    def _watch(self, link: EnclaveLink, stop: threading.Event) -> None:
        said_hello = was_refused = False
        while not stop.is_set():
            health = link.health()
            self._note_boot(health)
            step = next_step(self._view(health, said_hello=said_hello, was_refused=was_refused))
            if step in (Step.NEW_TOKEN, Step.HELLO):
                said_hello = self._hello(link, renew=step is Step.NEW_TOKEN)
                was_refused = not said_hello
                continue
            if step is Step.SEND_CREDENTIALS and self._supply(link):
                continue
            counters = link.counters() if said_hello else {}
            self._collector.snapshot = Snapshot(health, counters, step is Step.LOCKED_OUT)
            stop.wait(POLL_S)

    def _view(self, health: Health, *, said_hello: bool, was_refused: bool) -> View:
        return View(
            health=health,
            has_token=read_token(self._settings.token_file) is not None,
            said_hello=said_hello,
            was_refused=was_refused,
            credentials_age_s=None if self._sent_s is None else time.monotonic() - self._sent_s,
            resend_s=self._resend_s,
        )

    def _note_boot(self, health: Health) -> None:
        self._is_lost = False
        if health.boot != self._boot:
            self._log.info("enclave seen", boot=health.boot, ready=health.attestation_ready)
            self._boot, self._sent_s = health.boot, None

    def _hello(self, link: EnclaveLink, *, renew: bool) -> bool:
        if renew:
            # The file first: an engine that sees the enclave locked finds the token that opens it.
            self._write_token()
        token = read_token(self._settings.token_file)
        if token is None:
            return False
        try:
            link.hello(Hello(token, self._settings.json_protocol))
        except TokenError:
            self._log.error("enclave was locked with another token: restart it", boot=self._boot)
            return False
        self._log.info("enclave locked" if renew else "enclave rejoined", boot=self._boot)
        return True

    def _write_token(self) -> None:
        try:
            write_token(self._settings.token_file, secrets.token_bytes(TOKEN_BYTES))
        except OSError as error:
            raise ConfigError("MRGC_TOKEN_FILE cannot be written") from error

    def _supply(self, link: EnclaveLink) -> bool:
        supply = self._source.current()
        if supply is None:
            if not self._is_unsupplied:
                self._log.warning("no credentials for the enclave")
            self._is_unsupplied = True
            return False
        link.send(supply.credentials)
        self._is_unsupplied = False
        self._sent_s, self._resend_s = time.monotonic(), supply.resend_s
        return True


@contextmanager
def exporting(collector: EnclaveCollector, address: HttpAddress | None) -> Iterator[None]:
    """Answer Prometheus at `address` while inside the block; None answers nobody."""
    if address is None:
        yield
        return
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    server, thread = start_http_server(address.port, address.host, registry)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> int:
    """Watch until SIGTERM or SIGINT."""
    logs.configure("agent")
    try:
        settings = AgentSettings.from_env(os.environ)
        source = CredentialSource()
        stop = threading.Event()
        _on_signals(stop.set)
        collector = EnclaveCollector()
        with exporting(collector, settings.http):
            Agent(settings, source, collector).run(stop)
    except MrgcError as error:
        structlog.get_logger().critical("agent cannot run", reason=str(error))
        return 2
    return 0


def _on_signals(act: Callable[[], None]) -> None:
    def handle(_signum: int, _frame: FrameType | None) -> None:
        # From a thread of its own: the signal may have interrupted the main thread inside the lock of what is set.
        threading.Thread(target=act).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


if __name__ == "__main__":
    sys.exit(main())
