"""The whole system on one machine, with real parts: `python -m infra.local up --dir DIR`.

Composition root of the one-machine mode: a Redis server, with `--queue sqs` a local SQS instead, a local KMS that
verifies attestation, the enclave as a process with a software NSM, the enclave agent, one engine, one Celery worker and
Celery's beat. It starts them, restarts those that die, and stops them on SIGINT or SIGTERM. Everything it writes lies
below DIR.

May import: everything. Only infra, tests and bench import it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Final

from infra import parts, provision, tiny_model
from infra.durable_file import replace_file
from infra.local_enclave import REPOSITORY
from infra.local_nsm import create_pki
from infra.provision import Stack
from infra.supervisor import Part, Supervisor
from infra.vm_tools import Tools
from mrgc.errors import ConfigError, MrgcError
from worker import logs

START_S: Final = 90.0
#: An emulated processor boots the image in 10 to 30 s where nothing else runs, and much does.
VM_START_S: Final = 400.0
_LISTENERS: Final = ("redis", "sqs", "kms", "agent", "worker")


#: What to start in place of one part: for tests that put a proxy, another clock or a second worker into the stack.
Adapt = Callable[[Part], Iterable[Part]]


def main(argv: Sequence[str] | None = None, *, adapt: Adapt = lambda part: (part,)) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(argv)
    logs.configure("local")
    stopping = threading.Event()

    def stop(_signum: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        with _sole_owner(options.dir):
            run(_prepare(options), stopping, adapt=adapt)
    except MrgcError as error:
        print(f"infra.local: {error}", file=sys.stderr)
        return 2
    return 0


def run(stack: Stack, stopping: threading.Event, *, adapt: Adapt) -> None:
    """Start every part, print `ready` when a job would be served, and keep them running until `stopping` is set.

    Raises:
        ConfigError: a part does not come up; its log says why.
    """
    supervisor = Supervisor(stack.directory, cwd=REPOSITORY)
    try:
        broker = parts.sqs(stack) if stack.queue == "sqs" else parts.redis(stack)
        foundation = (broker, parts.kms(stack))
        for part in chain.from_iterable(map(adapt, foundation)):
            supervisor.start(part)
        names = [part.name for part in foundation]
        if not supervisor.wait_ready(*names, deadline_s=START_S, stopping=stopping):
            return
        if stack.enclave_in == "vm":
            provision.image(stack)
        provision.tenants(stack)
        if stack.queue == "sqs":
            provision.queues(stack)
        serving = (
            parts.enclave(stack),
            parts.agent(stack),
            parts.engine(stack),
            parts.worker(stack),
            parts.beat(stack),
        )
        for part in chain.from_iterable(map(adapt, serving)):
            supervisor.start(part)
        deadline_s = VM_START_S if stack.enclave_in == "vm" else START_S
        if not supervisor.wait_ready("agent", "engine", "worker", deadline_s=deadline_s, stopping=stopping):
            return
        print("ready", flush=True)
        while not stopping.wait(0.1):
            supervisor.restart_dead()
    finally:
        supervisor.stop()


def read_env(file: Path) -> dict[str, str]:
    """Read the shell exports that `up` wrote to DIR/env or DIR/env.<tenant>."""
    words = shlex.split(file.read_text(), comments=True)
    return dict(word.split("=", 1) for word in words if word != "export")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m infra.local", description="mrgc on one machine, with real parts")
    commands = parser.add_subparsers(required=True)
    up = commands.add_parser(
        "up", help="start everything in the foreground; `ready` on stdout when a job would be served"
    )
    up.add_argument(
        "--dir", required=True, type=Path, help="where sockets, data, logs, env, catalog.json, pids.json go"
    )
    up.add_argument("--tenants", default="acme,globex", help="comma list of tenants to set up (default: %(default)s)")
    up.add_argument("--models", type=Path, help="folder of model folders; default: a small seeded model made in DIR")
    up.add_argument(
        "--queue",
        choices=("redis", "sqs"),
        default="redis",
        help="broker of the tenants' jobs and of Celery's control tasks (default: %(default)s)",
    )
    up.add_argument(
        "--enclave",
        choices=("process", "vm"),
        default="process",
        help="where the enclave runs: a process, or its whole image in a virtual machine (default: %(default)s)",
    )
    up.add_argument("--device", default="cpu", help="where the engine computes: cpu or cuda:N (default: %(default)s)")
    up.add_argument("--threads", type=int, default=0, help="CPU threads of the engine; 0 leaves torch's choice")
    up.add_argument(
        "--json-protocol",
        action="store_true",
        help="serve docs/spec.md §8 to every local process, and let the tenants' keys admit it",
    )
    return parser


@contextmanager
def _sole_owner(directory: Path) -> Iterator[None]:
    """Hold the directory's lock: two stacks on one queue, one key store and one set of sockets would ruin both."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another stack runs in {directory}") from None
        yield


def _prepare(options: argparse.Namespace) -> Stack:
    directory: Path = options.dir.resolve()
    for name in ("run", "results", "state"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    models: Path = options.models.resolve() if options.models else directory / "models"
    if options.models is None and not models.exists():
        tiny_model.write(models)
    if not any(models.glob("*/manifest.json")):
        raise ConfigError(f"--models {models} holds no model folder with a manifest.json")
    if not (directory / "nsm" / "root.pem").exists():
        create_pki(directory / "nsm")
    tenants = tuple(options.tenants.split(","))
    ports = _ports(directory)
    if options.enclave == "vm":
        Tools()  # Without QEMU there is no point in starting the rest.
    return Stack(
        directory,
        models,
        tenants,
        ports,
        threads=options.threads,
        json_protocol=options.json_protocol,
        queue=options.queue,
        enclave_in=options.enclave,
        device=options.device,
    )


def _ports(directory: Path) -> dict[str, int]:
    """Choose loopback ports at the first start; a restart in the same directory keeps them."""
    file = directory / "ports.json"
    ports: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
    probes = {name: socket.create_server(("127.0.0.1", 0)) for name in _LISTENERS if name not in ports}
    ports |= {name: probe.getsockname()[1] for name, probe in probes.items()}
    for probe in probes.values():
        probe.close()
    replace_file(file, json.dumps(ports).encode())
    return ports


if __name__ == "__main__":
    sys.exit(main())
