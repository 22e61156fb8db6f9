"""All engines of this host as one: what they serve together, and whether anyone can serve now.

Every engine of a host reads the same models folder, so any of them serves any job.

May import: the standard library, mrgc.errors, worker. Called by the intake.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from worker.admission import Capacity
from worker.engine_link import EngineLink, LinkOwner
from worker.engine_watch import EngineWatch
from worker.metrics import Metrics
from worker.threads import Loop


class Engines:
    """Links and watches, one pair per address.

    Args:
        addresses: `unix:PATH` of each.
        owner: whom the links report to.
    """

    def __init__(self, addresses: Sequence[str], owner: LinkOwner) -> None:
        self.links = [EngineLink(address, owner) for address in addresses]
        self._watches = [EngineWatch(address) for address in addresses]

    @property
    def loops(self) -> Mapping[str, Loop]:
        """The loops to run, by name."""
        links = {f"link {link.address}": link.run for link in self.links}
        return links | {f"watch {watch.address}": watch.run for watch in self._watches}

    @property
    def can_serve(self) -> bool:
        """Whether an engine is connected and says that it is healthy."""
        pairs = zip(self.links, self._watches, strict=True)
        return any(link.ready is not None and watch.reason is None for link, watch in pairs)

    @property
    def reasons(self) -> list[str]:
        """Codes of what keeps every engine from serving; none when one can."""
        return [] if self.can_serve else sorted({watch.reason or "engine_unreachable" for watch in self._watches})

    def capacity(self, *, max_body_bytes: int) -> Capacity:
        """Return what the connected engines serve under the deployment's cap."""
        ready = [link.ready for link in self.links if link.ready is not None]
        models = {name: card for engine in ready for name, card in engine.models.items()}
        return Capacity(models, min([max_body_bytes, *(engine.max_result_bytes for engine in ready)]))

    def measure(self, metrics: Metrics) -> None:
        """Copy the engines' own counters."""
        for watch in self._watches:
            for name, value in (watch.health.counters if watch.health is not None else {}).items():
                metrics.engine.labels(watch.address, name).set(value)
