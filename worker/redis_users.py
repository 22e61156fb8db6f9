"""Who may do what on the queue's Redis: one ACL user per role and per tenant, each with the least that it needs. Pure.

Rules are those of Redis, "ACL" (redis.io/docs/latest/operate/oss_and_stack/management/security/acl). Users authenticate
with random passwords of 256 bits, so that the unsalted SHA-256 that Redis keeps of them gives nothing away.

May import: the standard library. Called by worker.access and infra.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

#: Prefix of the names of tenants' users, so that no tenant's name can be a role's.
TENANT_PREFIX: Final = "tenant-"

OPERATOR: Final = "operator"
WORKER: Final = "worker"
CONTROL: Final = "control"
EDGE: Final = "edge"
PRODUCER: Final = "producer"

#: What worker.sources does to the tenants' streams. EVAL runs under the same rules as its caller.
_WORKER: Final = (
    "~q:* ~dead:* ~deaths:* ~done:* resetchannels -@all +ping +select +multi +exec +eval +xgroup|create "
    "+xgroup|delconsumer +xreadgroup +xautoclaim +xclaim +xack +xdel +xadd +xlen +xrange +xpending +hincrby +hget "
    "+hdel +expire"
)
#: What kombu does as a consumer. PSUBSCRIBE wants its pattern literally; the number is the broker's database.
_CONTROL: Final = (
    "~ctl:* resetchannels &ctl:* &ctl:/{database}.celery.pidbox -@all +@read +@write +@list +@hash +@sortedset +@set "
    "+@transaction +@connection +@pubsub +@scripting +@blocking -@dangerous -@admin +select +time +client|setname"
)
_EDGE: Final = "~q:* resetchannels -@all +ping +select +xadd"
#: What kombu does to send to one queue: beside the queue itself it reads and writes the list of its bindings.
_PRODUCER: Final = (
    "~ctl:infer* ~ctl:_kombu.binding.infer ~ctl:_kombu.binding_permanent.infer resetchannels -@all +ping +select "
    "+multi +exec +llen +lpush +smembers +sadd +client|setname"
)
#: A selector (Redis ≥ 7.0) binds XREAD to one key for reading and XADD to the other.
_TENANT: Final = "~q:{tenant} resetchannels -@all +ping +xadd (%R~done:{tenant} -@all +xread)"
#: Before 7.0 every command of a user reaches every key of his: a tenant can also read its own sealed jobs back, and
#: write notices to itself.
_TENANT_WITHOUT_SELECTORS: Final = "~q:{tenant} ~done:{tenant} resetchannels -@all +ping +xadd +xread"


class User(NamedTuple):
    """One user; `rules` hold no password."""

    name: str
    rules: str


def users(tenants: Iterable[str], *, selectors: bool = True, broker_database: int = 1) -> list[User]:
    """Return all users of a deployment but `default`, which is switched off.

    Args:
        tenants: names as in the registry; their pattern (docs/spec.md §2) has no character that a key pattern knows.
        selectors: whether the server knows them (7.0).
        broker_database: number of the database that MRGC_BROKER_URL names.
    """
    tenant_rules = _TENANT if selectors else _TENANT_WITHOUT_SELECTORS
    return [
        User(OPERATOR, "~* &* +@all"),
        User(WORKER, _WORKER),
        User(CONTROL, _CONTROL.format(database=broker_database)),
        User(EDGE, _EDGE),
        User(PRODUCER, _PRODUCER),
        *(User(TENANT_PREFIX + tenant, tenant_rules.format(tenant=tenant)) for tenant in tenants),
    ]


def acl_file(found: Sequence[User], passwords: Mapping[str, Sequence[str]]) -> str:
    """Return the text of an aclfile, for the server's option of that name and ACL LOAD.

    Args:
        found: the users.
        passwords: by user; all that are valid now, so that one can be replaced while both work.
    """
    lines = [f"user {user.name} on {_hashes(passwords[user.name])} {user.rules}" for user in found]
    return "\n".join(["user default off", *lines]) + "\n"


def set_commands(found: Sequence[User], passwords: Mapping[str, Sequence[str]]) -> str:
    """Return ACL SETUSER commands, for redis-cli and a server without an aclfile; `default` comes last."""
    lines = [f"ACL SETUSER {user.name} reset on {_hashes(passwords[user.name])} {user.rules}" for user in found]
    return "\n".join([*lines, "ACL SETUSER default reset"]) + "\n"


def _hashes(passwords: Sequence[str]) -> str:
    return " ".join(f"#{hashlib.sha256(password.encode()).hexdigest()}" for password in passwords)
