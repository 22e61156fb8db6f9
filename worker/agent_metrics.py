"""The enclave's counters, as Prometheus reads them from the agent.

An enclave has no network of its own to be scraped over. What is exported was last asked for by the agent's loop, so a
scrape never waits for the enclave.

Called by `worker.enclave_agent`. May import: the standard library, prometheus_client, mrgc.wire.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from mrgc.wire.enclave_protocol import Health

_PREFIX: Final = "mrgc_enclave_"
_REFUSED: Final = "jobs_refused_"
#: Counters of the enclave that are levels, not sums.
_GAUGES: Final = frozenset({"connections", "key_cache_entries"})
_MILLISECONDS: Final = "_ms_total"
#: What each counter of the enclave means; another version's other counters are exported without.
_MEANINGS: Final[Mapping[str, str]] = {
    "attestation_failures": "Attestation documents that the NSM did not make.",
    "attestation_ms_total": "Time spent on attestation documents.",
    "attestations": "Attestation documents asked of the NSM.",
    "connections": "Open connections to the enclave.",
    "frames_bytes": "Bytes of requests and answers.",
    "jobs_opened": "Jobs whose payload was released.",
    "json_requests": "Requests of the JSON protocol.",
    "key_cache_entries": "Data keys and refusals that are remembered.",
    "key_cache_hits": "Look-ups of data keys that needed no KMS call.",
    "key_cache_misses": "Look-ups of data keys that needed one.",
    "kms_calls": "Calls to KMS, each with its retries.",
    "kms_failures": "Calls to KMS that gave no key: refused, or not answered.",
    "kms_ms_total": "Time spent on calls to KMS.",
    "open_batches": "Requests to open jobs.",
    "results_sealed": "Results sealed.",
    "seal_batches": "Requests to seal results.",
}

Metric = CounterMetricFamily | GaugeMetricFamily | InfoMetricFamily


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look at the enclave; None and empty while it cannot be reached."""

    health: Health | None = None
    counters: Mapping[str, int] = field(default_factory=dict)
    #: It was locked with a token that the agent does not have.
    is_locked_out: bool = False


class EnclaveCollector(Collector):
    """Exports the newest snapshot."""

    def __init__(self) -> None:
        self.snapshot = Snapshot()

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of the newest snapshot."""
        snapshot = self.snapshot
        yield _gauge("up", "The enclave answers its agent.", snapshot.health is not None)
        yield _gauge("locked_out", "The enclave was locked with a token of others.", snapshot.is_locked_out)
        if snapshot.health is not None:
            yield from _of_health(snapshot.health)
        yield from _of_counters(snapshot.counters)


def _of_health(health: Health) -> Iterator[Metric]:
    yield InfoMetricFamily(_PREFIX + "boot", "The enclave's boot.", {"id": health.boot})
    yield _gauge("attestation_ready", "A fresh attestation document for KMS is at hand.", health.attestation_ready)
    yield _gauge("kms_ready", "Unexpired credentials are held and KMS answers.", health.kms_ready)
    yield _gauge("uptime_seconds", "Seconds since the enclave's boot.", health.uptime_s)


def _of_counters(counters: Mapping[str, int]) -> Iterator[Metric]:
    refused = CounterMetricFamily(_PREFIX + "jobs_refused", "Jobs and results refused, by code.", labels=["code"])
    for name, value in sorted(counters.items()):
        meaning = _MEANINGS.get(name, "A counter of another version's enclave.")
        if name.startswith(_REFUSED):
            refused.add_metric([name.removeprefix(_REFUSED)], value)
        elif name in _GAUGES:
            yield _gauge(name, meaning, value)
        elif name.endswith(_MILLISECONDS):
            base = _PREFIX + name.removesuffix(_MILLISECONDS) + "_seconds"
            yield CounterMetricFamily(base, meaning, value / 1_000)
        else:
            yield CounterMetricFamily(_PREFIX + name, meaning, value)
    yield refused


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, text, value)
