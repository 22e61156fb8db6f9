"""The processes of the one-machine stack: for each its command, its whole environment, and how to see that it serves.

May import: everything. Called by infra.local and bench.
"""

from __future__ import annotations

import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Final

from infra import provision, queue_access, redis_server
from infra.provision import Stack
from infra.redis_server import Fsync
from infra.supervisor import Part
from mrgc.errors import MrgcError
from mrgc.wire import enclave_protocol, frames
from mrgc.wire.addresses import connect, parse_address

PROBE_S: Final = 5.0
#: Longer than the intake's own drain (MRGC_DRAIN_S), so that a drain ends by itself.
WORKER_STOP_S: Final = 30.0
#: What every part may inherit; credentials and settings reach only those that need them.
_INHERITED: Final = ("PATH", "HOME", "LANG", "TMPDIR", "PYTHONDONTWRITEBYTECODE", "LD_LIBRARY_PATH")


def environment(**settings: str) -> dict[str, str]:
    """Return a part's whole environment: these settings, and what every part may inherit."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return inherited | {"PYTHONUNBUFFERED": "1"} | settings


def redis(stack: Stack, *, fsync: Fsync = "always") -> Part:
    """Describe the queue; with "everysec" a crash of the machine may lose what it confirmed in the last second."""
    acl_file = queue_access.write_acl_file(stack.directory, stack.tenants)
    command = redis_server.command(
        stack.directory / "redis", binary=None, port=stack.ports["redis"], fsync=fsync, acl_file=acl_file
    )
    return Part("redis", tuple(command), environment(), lambda: listens(stack.ports["redis"]))


def sqs(stack: Stack) -> Part:
    """Describe the local SQS, durable in the stack's directory."""
    command = (
        *(sys.executable, "-m", "infra.local_sqs"),
        *("--port", str(stack.ports["sqs"])),
        *("--dir", str(stack.directory / "sqs")),
    )
    return Part("sqs", command, environment(), lambda: listens(stack.ports["sqs"]))


def kms(stack: Stack) -> Part:
    """Describe the local KMS; once it listens the tenants can be provisioned."""
    command = (sys.executable, "-m", "infra.local_kms", "--config", str(provision.kms_config(stack)))
    return Part("kms", command, environment(), lambda: listens(stack.ports["kms"]))


def enclave(stack: Stack) -> Part:
    """Describe the enclave behind a unix socket."""
    if stack.enclave_in == "vm":
        return _virtual_machine(stack)
    command = (
        *(sys.executable, "-m", "infra.local_enclave"),
        *("--listen", stack.enclave),
        *("--nsm", str(stack.directory / "nsm")),
        *("--kms-port", str(stack.ports["kms"])),
        *("--ca", str(stack.kms_ca)),
    )
    return Part("enclave", command, environment(), lambda: enclave_serves(stack.enclave))


def _virtual_machine(stack: Stack) -> Part:
    command = (
        *(sys.executable, "-m", "infra.vm"),
        *("--image", str(stack.image)),
        *("--dir", str(stack.directory / "vm")),
        *("--listen", stack.enclave),
        *("--nsm", str(stack.directory / "nsm")),
        *("--region", provision.REGION),
        *("--kms-port", str(stack.ports["kms"])),
    )
    return Part("enclave", command, environment(), lambda: enclave_serves(stack.enclave))


def agent(stack: Stack) -> Part:
    """Describe the enclave agent, the only part with the service's credentials."""
    env = environment(
        MRGC_ENCLAVE=stack.enclave,
        MRGC_TOKEN_FILE=str(stack.token_file),
        MRGC_AGENT_HTTP=f"127.0.0.1:{stack.ports['agent']}",
        MRGC_JSON_PROTOCOL=str(int(stack.json_protocol)),
        **provision.service_credentials(stack),
    )
    command = (sys.executable, "-m", "worker.enclave_agent")
    return Part("agent", command, env, lambda: enclave_serves(stack.enclave))


def engine(stack: Stack) -> Part:
    """Describe the engine, on the models of the stack."""
    env = environment(
        MRGC_ENGINE=stack.engine,
        MRGC_ENCLAVE=stack.enclave,
        MRGC_TOKEN_FILE=str(stack.token_file),
        MRGC_MODELS=str(stack.models),
        MRGC_THREADS=str(stack.threads),
        MRGC_DEVICE=stack.device,
    )
    return Part("engine", (sys.executable, "-m", "worker.engine"), env, lambda: accepts(stack.engine), stop_s=20.0)


def worker(stack: Stack) -> Part:
    """Describe the Celery worker with its intake."""
    env = environment(
        MRGC_QUEUE_URL=stack.queue_url,
        MRGC_BROKER_URL=stack.broker_url,
        MRGC_RESULTS_URL=stack.results_url,
        MRGC_REGISTRY=str(stack.registry),
        MRGC_ENGINES=stack.engine,
        MRGC_WORKER_HTTP=f"127.0.0.1:{stack.ports['worker']}",
        **_broker_credentials(stack),
    )
    command = (
        *(sys.executable, "-m", "celery", "-A", "tasks", "worker"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"),
    )
    ready = f"http://127.0.0.1:{stack.ports['worker']}/readyz"
    return Part("worker", command, env, lambda: answers(ready), stop_s=WORKER_STOP_S)


def beat(stack: Stack) -> Part:
    """Describe the clock that calls the control tasks; it holds no lease and no job, so nothing waits for it."""
    env = environment(MRGC_BROKER_URL=stack.broker_url, **_broker_credentials(stack))
    command = (sys.executable, "-m", "celery", "-A", "tasks", "beat", "--pidfile=", "--loglevel", "WARNING")
    return Part("beat", command, env, lambda: True)


def _broker_credentials(stack: Stack) -> dict[str, str]:
    """What a client of the local SQS needs; a Redis URL holds its own."""
    return provision.ANYBODY if stack.queue == "sqs" else {}


def listens(port: int) -> bool:
    """Return whether something listens on a loopback port."""
    return _succeeds(lambda: socket.create_connection(("127.0.0.1", port), timeout=PROBE_S).close())


def accepts(address: str) -> bool:
    """Return whether something accepts at the address of a socket."""
    return _succeeds(lambda: connect(parse_address(address), timeout_s=PROBE_S).close())


def answers(url: str) -> bool:
    """Return whether a page is served with status 200."""
    # The URL is built above from a loopback port; no other scheme can reach this line.
    return _succeeds(lambda: urllib.request.urlopen(url, timeout=PROBE_S).close())  # noqa: S310


def enclave_serves(address: str) -> bool:
    """Return whether the enclave has its token and its credentials."""
    try:
        with connect(parse_address(address), timeout_s=PROBE_S) as sock:
            frames.send(sock, enclave_protocol.plain_request(0, enclave_protocol.Op.HEALTH))
            health = enclave_protocol.parse_health(frames.recv(sock))
    except (OSError, MrgcError):
        return False
    return health.hello and health.attestation_ready and health.kms_ready


def _succeeds(probe: Callable[[], None]) -> bool:
    try:
        probe()
    except (OSError, urllib.error.URLError):
        return False
    return True
