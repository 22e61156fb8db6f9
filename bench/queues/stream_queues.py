"""The tenants' streams on the Redis server, filled at once from streams that were prepared beside them.

May import: the standard library, bench, worker.sources.redis_layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from worker.sources.redis_layout import GROUP

_FILL: Final = """
for _, tenant in ipairs(ARGV) do redis.call('COPY', KEYS[1] .. tenant, 'q:' .. tenant, 'REPLACE') end
"""
#: Returns the place of the first that is left, so that asking costs the server nothing while there is something to do.
_FIRST_LEFT: Final = """
for place, tenant in ipairs(ARGV) do if redis.call('XLEN', 'q:' .. tenant) > 0 then return place end end
return 0
"""


class StreamQueues:
    """The queues of some tenants.

    Args:
        client: of the worker's queue database.
        name: of this set of tenants.
    """

    def __init__(self, client: Any, name: str) -> None:
        self._client = client
        self._name = name
        self._tenants: list[str] = []
        #: Those that were not yet seen to be drained since the last `fill`.
        self._left: list[str] = []

    def prepare(self, label: str, jobs: Mapping[str, Sequence[bytes]]) -> None:
        """Write jobs, by tenant, to streams that nobody reads, each with the group that its copy will need."""
        self._tenants = list(jobs)
        for tenant, of_tenant in jobs.items():
            with self._client.pipeline(transaction=False) as pipe:
                pipe.xgroup_create(self._prepared(label) + tenant, GROUP, id="0", mkstream=True)
                for job in of_tenant:
                    pipe.xadd(self._prepared(label) + tenant, {"job": job})
                pipe.execute()

    def fill(self, label: str) -> None:
        """Copy prepared jobs to the queues."""
        self._left = list(self._tenants)
        self._client.eval(_FILL, 1, self._prepared(label), *self._tenants)

    def is_drained(self) -> bool:
        """Return whether every job was acknowledged."""
        first = int(self._client.eval(_FIRST_LEFT, 0, *self._left))
        self._left = self._left[first - 1 :] if first else []
        return not self._left

    def calls(self) -> int:
        """Return 0: nobody counts them."""
        return 0

    def _prepared(self, label: str) -> str:
        return f"bench:{self._name}:{label}:"
