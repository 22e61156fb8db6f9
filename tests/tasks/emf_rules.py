"""The published rules of the embedded metric format, field by field (Amazon CloudWatch User Guide)."""

from __future__ import annotations

import json
from typing import Any, Final

#: Amazon CloudWatch Logs quotas: an event; the specification's own figure is lower than the quota.
MAX_EVENT_BYTES: Final = 256 << 10
MAX_METRICS: Final = 100
MAX_DIMENSIONS: Final = 30
MAX_NAME_CHARS: Final = 255
#: Amazon CloudWatch API Reference, "Dimension" and "MetricDatum".
MAX_DIMENSION_VALUE_CHARS: Final = 1_024
UNITS: Final = frozenset({"Seconds", "Microseconds", "Milliseconds", "Percent", "Count", "Count/Second", "None"}) | {
    f"{size}{kind}{rate}"
    for size in ("", "Kilo", "Mega", "Giga", "Tera")
    for kind in ("bytes", "bits")
    for rate in ("", "/Second")
}
LARGEST: Final = 2.0**360


def checked(line: str) -> dict[str, Any]:
    """Return the document of one log line, after every rule has held for it."""
    assert len(line.encode()) <= MAX_EVENT_BYTES
    assert "\n" not in line
    document: dict[str, Any] = json.loads(line, parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))
    metadata = document["_aws"]
    assert metadata.keys() == {"Timestamp", "CloudWatchMetrics"}
    assert type(metadata["Timestamp"]) is int
    assert metadata["CloudWatchMetrics"]
    for directive in metadata["CloudWatchMetrics"]:
        _check_directive(directive, document)
    return document


def _check_directive(directive: dict[str, Any], document: dict[str, Any]) -> None:
    assert directive.keys() == {"Namespace", "Dimensions", "Metrics"}
    assert 1 <= len(directive["Namespace"]) <= MAX_NAME_CHARS
    assert not directive["Namespace"].startswith("AWS/")
    assert directive["Dimensions"]
    for names in directive["Dimensions"]:
        assert len(names) <= MAX_DIMENSIONS
        assert len(set(names)) == len(names)
        for name in names:
            assert 1 <= len(name) <= MAX_NAME_CHARS
            assert not name.startswith(":")
            assert type(document[name]) is str
            assert 1 <= len(document[name].strip()) <= MAX_DIMENSION_VALUE_CHARS
            assert document[name].isascii()
    assert 1 <= len(directive["Metrics"]) <= MAX_METRICS
    for metric in directive["Metrics"]:
        assert metric.keys() <= {"Name", "Unit", "StorageResolution"}
        assert 1 <= len(metric["Name"]) <= MAX_NAME_CHARS
        assert metric["Unit"] in UNITS
        assert metric.get("StorageResolution", 60) in (1, 60)
        value = document[metric["Name"]]
        assert type(value) in (int, float)
        assert -LARGEST <= value <= LARGEST
