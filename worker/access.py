"""Writes what grants access to the queues: `python -m worker.access redis` and `python -m worker.access sqs`.

An operator runs it when a tenant comes or goes. It talks to no server: it prints an aclfile, or a queue's policy, and
keeps the passwords of Redis's users as files that only their owner reads.

May import: the standard library, mrgc.errors, worker. Called by operators and infra.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from mrgc.errors import ConfigError, MrgcError
from worker import redis_users
from worker.queue_policy import queue_policy
from worker.registry import Registry

#: 256 bits: a hash of it can stand in an aclfile without salt.
PASSWORD_BYTES: Final = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        text: str = options.print(options)
    except (MrgcError, OSError) as error:
        print(f"worker.access: {error}", file=sys.stderr)  # noqa: T201  a command talks to a person
        return 2
    sys.stdout.write(text)
    return 0


def read_passwords(folder: Path, names: Iterable[str]) -> dict[str, list[str]]:
    """Read each user's passwords, one a line, from the file of its name; make a file with one where there is none.

    Raises:
        ConfigError: a file holds no password.
        OSError: the folder cannot be read or written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    passwords = {}
    for name in names:
        file = folder / name
        if not file.exists():
            file.touch(mode=0o600, exist_ok=False)
            file.write_text(secrets.token_urlsafe(PASSWORD_BYTES) + "\n", encoding="ascii")
        passwords[name] = file.read_text(encoding="ascii").split()
        if not passwords[name]:
            raise ConfigError(f"{file} holds no password")
    return passwords


def _redis(options: argparse.Namespace) -> str:
    tenants = sorted(Registry(options.registry).tenants)
    users = redis_users.users(tenants, selectors=options.server == "7", broker_database=options.broker_database)
    passwords = read_passwords(options.passwords, [user.name for user in users])
    render = redis_users.set_commands if options.commands else redis_users.acl_file
    return render(users, passwords)


def _sqs(options: argparse.Namespace) -> str:
    policy = queue_policy(
        queue_arn=options.queue_arn, worker_role=options.worker_role, tenant_principal=options.tenant_principal
    )
    return json.dumps(policy, indent=2) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker.access", description="who may do what to the queues")
    commands = parser.add_subparsers(required=True)
    redis = commands.add_parser("redis", help="print the ACL of the Redis that holds queues and broker")
    redis.add_argument("--registry", type=Path, required=True, help="tenants.toml: a user for each tenant in it")
    redis.add_argument("--passwords", type=Path, required=True, help="folder with a file of passwords per user, 0600")
    redis.add_argument("--server", choices=("6.2", "7"), default="7", help="its version; 7 knows selectors")
    redis.add_argument("--broker-database", type=int, default=1, help="number in MRGC_BROKER_URL (default: 1)")
    redis.add_argument("--commands", action="store_true", help="ACL SETUSER commands instead of an aclfile")
    redis.set_defaults(print=_redis)
    sqs = commands.add_parser("sqs", help="print the policy of one queue")
    sqs.add_argument("--queue-arn", required=True)
    sqs.add_argument("--worker-role", required=True, help="ARN of the GPU hosts' role")
    sqs.add_argument("--tenant-principal", help="ARN of the user or role that sends; none for a dead-letter queue")
    sqs.set_defaults(print=_sqs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
