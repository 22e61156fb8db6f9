"""The users of the one-machine stack's Redis, as an operator would set them up with `python -m worker.access`.

Passwords and aclfile lie in DIR/redis. Idempotent: a restart in the same directory finds its passwords again.

Called by infra.provision and infra.parts. May import: the standard library, mrgc.errors, worker, infra.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from infra import redis_server
from infra.durable_file import replace_file
from worker import access, redis_users


def login(directory: Path, user: str) -> str:
    """Return `user:password@` for a URL; the user need not exist yet.

    Args:
        directory: of the stack.
        user: a role, or a tenant's user.
    """
    (password, *_) = access.read_passwords(directory / "redis" / "passwords", [user])[user]
    return f"{user}:{password}@"


def write_acl_file(directory: Path, tenants: Sequence[str]) -> Path:
    """Write the server's users: every role, and one per tenant; the default user is off."""
    users = redis_users.users(tenants, selectors=redis_server.has_selectors())
    passwords = access.read_passwords(directory / "redis" / "passwords", [user.name for user in users])
    path = directory / "redis" / "users.acl"
    replace_file(path, redis_users.acl_file(users, passwords).encode())
    return path
