"""The product's users on a server of any test, so that what is tested runs with the rights that it will have."""

from __future__ import annotations

from typing import Final

from infra.redis_server import RedisServer
from worker import redis_users
from worker.sources.redis_streams import connect

PASSWORD: Final = "of-this-test"


def add_users(server: RedisServer) -> None:
    """Make the users of two tenants and all roles; the default user stays, for the test's own view."""
    with connect(server.url()) as client:
        selectors = not client.info("server")["redis_version"].startswith("6.")
        for user in redis_users.users(("acme", "globex"), selectors=selectors):
            client.execute_command("ACL", "SETUSER", user.name, "reset", "on", f">{PASSWORD}", *user.rules.split())


def login(user: str) -> str:
    """`user:password@` for a URL."""
    return f"{user}:{PASSWORD}@"
