"""The enclave on a Nitro parent: `python -m infra.nitro run`, `proxy REGION`, `debug`.

`run` starts the published image and nothing else, keeps it running, and ends when it ends, so that systemd starts both
anew. It holds no token, no credentials and no job; what it writes is one line that says where the enclave is. The units
are in infra/units.

May import: the standard library, enclave.kms_regions, enclave.kms_calls, mrgc, infra.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enclave.enclave_app import PORT
from enclave.kms_calls import KMS_THREADS
from enclave.kms_regions import PROXY_PORTS, endpoint
from infra import nitro_cli
from infra.durable_file import replace_file
from infra.eif import reader
from infra.eif.profiles import MEBIBYTE
from infra.nitro_cli import NO_FLAGS, RUNNING, RunningEnclave, Size
from mrgc.errors import ConfigError, MrgcError
from mrgc.measurements import read_measurements
from mrgc.wire import enclave_protocol, frames
from mrgc.wire.addresses import VsockAddress, connect

NAME: Final = "mrgc"
#: Fixed, so that engines and agent find the next boot without being told; 4 and up are free (vsock(7)).
CID: Final = 16
POLL_S: Final = 5.0
#: From the start to the first answer, and without an answer after that, before the enclave is ended.
BOOT_S: Final = 120.0
SILENT_S: Final = 60.0
ANSWER_S: Final = 5.0
_KEY: Final = "arn:{}:kms:{}:000000000000:key/any"


@dataclass(slots=True)
class Watch:
    """Decides whether an enclave is given up. Pure: the caller brings the time and what it saw."""

    started_s: float
    answered_s: float | None = None

    def is_over(self, now_s: float, *, running: bool, answered: bool) -> bool:
        """Take one look in: whether nitro-cli lists it as running, and whether it answered.

        Returns:
            True when it must be ended, and another one started.
        """
        if answered:
            self.answered_s = now_s
        if self.answered_s is None:
            return not running or now_s - self.started_s > BOOT_S
        return not running or now_s - self.answered_s > SILENT_S


@dataclass(frozen=True, slots=True)
class Deployment:
    """What to run, and where to say where it runs."""

    image: Path
    #: pcr-values.json, as published to tenants.
    pcrs: Path
    #: Receives MRGC_ENCLAVE=vsock:CID:PORT, for the units of agent and engines.
    env_file: Path
    cid: int = CID


def keep(
    deployment: Deployment,
    stopping: threading.Event,
    *,
    is_healthy: Callable[[int], bool],
    notify: Callable[[str], None],
) -> int:
    """Run the enclave until `stopping` is set or it ends.

    Args:
        deployment: what and where.
        stopping: set by SIGTERM.
        is_healthy: asks the enclave with this CID how it is; never raises.
        notify: tells the supervisor, as sd_notify(3).

    Returns:
        0 when it was stopped, 1 when the enclave ended or fell silent.

    Raises:
        ConfigError: the image is not the published one, or nitro-cli does not run it as it must.
    """
    size = _checked(deployment)
    for left in _ours():
        nitro_cli.terminate_enclave(left.id)  # of a supervisor that was killed: its token would fit no agent
    started_s = time.monotonic()
    nitro_cli.run_enclave(deployment.image, name=NAME, cid=deployment.cid, size=size)
    enclave = _started(deployment)
    try:
        replace_file(deployment.env_file, f"MRGC_ENCLAVE=vsock:{enclave.cid}:{PORT}\n".encode(), mode=0o644)
        watch = Watch(started_s)
        while not stopping.wait(POLL_S):
            running = any(each.id == enclave.id and each.state == RUNNING for each in nitro_cli.describe_enclaves())
            answered = is_healthy(enclave.cid)
            if answered and watch.answered_s is None:
                notify("READY=1")
            if watch.is_over(time.monotonic(), running=running, answered=answered):
                print("infra.nitro: the enclave ended or no longer answers", file=sys.stderr)
                return 1
        return 0
    finally:
        if any(each.id == enclave.id for each in _ours()):
            nitro_cli.terminate_enclave(enclave.id)


def _checked(deployment: Deployment) -> Size:
    """Demand that the image is the published one; return what it asks for."""
    image = reader.read(deployment.image)
    published = read_measurements(deployment.pcrs)
    if image.pcrs != published:
        raise ConfigError(f"{deployment.image} is not the image of {deployment.pcrs}: no tenant's key policy admits it")
    return Size(-(-image.header.default_memory_bytes // MEBIBYTE), image.header.default_cpus)


def _started(deployment: Deployment) -> RunningEnclave:
    found = _ours()
    if len(found) != 1 or found[0].state != RUNNING or found[0].cid != deployment.cid:
        raise ConfigError(f"nitro-cli does not list the enclave that it started: {found}")
    enclave = found[0]
    published = read_measurements(deployment.pcrs)[0].hex()
    if enclave.flags != NO_FLAGS or enclave.pcr0 not in ("", published):
        nitro_cli.terminate_enclave(enclave.id)
        raise ConfigError(f"the enclave runs with flags {enclave.flags} and PCR0 {enclave.pcr0}, not as published")
    return enclave


def _ours() -> list[RunningEnclave]:
    return [each for each in nitro_cli.describe_enclaves() if each.name == NAME]


def answers_health(cid: int) -> bool:
    """Ask the enclave with this CID for its health, which it tells anybody."""
    try:
        with connect(VsockAddress(cid, PORT), timeout_s=ANSWER_S) as sock:
            frames.send(sock, enclave_protocol.plain_request(1, enclave_protocol.Op.HEALTH))
            enclave_protocol.parse_health(frames.recv(sock))
    except (OSError, MrgcError):
        return False
    return True


def proxy_command(region: str, allowed: Path) -> list[str]:
    """Return how to start the vsock-proxy of one region, which may reach that region's KMS and nothing else.

    Args:
        region: one of the image's (enclave/kms_regions.py).
        allowed: where to write the list of what it may reach.
    """
    partition = "aws-us-gov" if region.startswith("us-gov-") else "aws"
    host = endpoint(_KEY.format(partition, region)).host
    allowed.write_text(f"allowlist:\n- {{address: {host}, port: 443}}\n")
    # A connection beyond the workers is accepted and then waits: as many as the enclave has calls in flight.
    return ["vsock-proxy", str(PROXY_PORTS[region]), host, "443", "-w", str(KMS_THREADS), "--config", str(allowed)]


def debug_command(image: Path) -> list[str]:
    """Return how to start the image in debug mode, with its console attached."""
    size = Size(-(-reader.read(image).header.default_memory_bytes // MEBIBYTE), 2)
    return [
        *("nitro-cli", "run-enclave", "--debug-mode", "--attach-console", "--enclave-name", f"{NAME}-debug"),
        *("--eif-path", str(image), "--memory", str(size.memory_mib), "--cpu-count", str(size.cpus)),
    ]


def _notify(state: str) -> None:
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            # A leading @ stands for the abstract namespace (sd_notify(3)).
            sock.sendto(state.encode(), f"\0{path[1:]}" if path.startswith("@") else path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m infra.nitro", description="the enclave on a Nitro parent")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    run = commands.add_parser("run", help="run the published image and keep it running; for a supervisor")
    run.add_argument("--image", required=True, type=Path)
    run.add_argument("--pcrs", required=True, type=Path, help="pcr-values.json, as published to tenants")
    run.add_argument("--env-file", required=True, type=Path, help="receives MRGC_ENCLAVE=vsock:CID:PORT")
    run.add_argument("--cid", type=int, default=CID, help="(default: %(default)s)")
    proxy = commands.add_parser("proxy", help="become the vsock-proxy of one region's KMS")
    proxy.add_argument("region", choices=sorted(PROXY_PORTS), metavar="REGION")
    proxy.add_argument("--dir", required=True, type=Path, help="where its list of allowed hosts goes")
    debug = commands.add_parser("debug", help="INSECURE: run the image with an open memory and all PCRs zero")
    debug.add_argument("--image", required=True, type=Path)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        if options.command == "run":
            stopping = threading.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: stopping.set())
            deployment = Deployment(options.image, options.pcrs, options.env_file, options.cid)
            return keep(deployment, stopping, is_healthy=answers_health, notify=_notify)
        if options.command == "proxy":
            command = proxy_command(options.region, options.dir / f"{options.region}.yaml")
        else:
            command = debug_command(options.image)
            print(DEBUG_WARNING, file=sys.stderr)
        os.execvp(command[0], command)  # noqa: S606  there is no shell to avoid
    except (MrgcError, OSError) as error:
        print(f"infra.nitro: {error}", file=sys.stderr)
        return 2


DEBUG_WARNING: Final = """\
############################################################################################
#  DEBUG MODE: this enclave's memory and console are open to whoever is root here.         #
#  Its PCR0, PCR1 and PCR2 are zero: no key policy that names an image releases a key to   #
#  it, and none must. For finding out why an image does not boot, never for tenants' jobs. #
############################################################################################"""


if __name__ == "__main__":
    sys.exit(main())
