"""One forged chain per session, and the genuine documents."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from tests.attest.forge import Pki, make_pki

VECTORS: Final = Path(__file__).parents[1] / "vectors" / "attestation"


@dataclass(frozen=True)
class Genuine:
    """A document that AWS signed, and what is known of it."""

    data: bytes
    facts: dict[str, Any]

    @property
    def at(self) -> datetime:
        return datetime.fromtimestamp(self.facts["timestamp_ms"] / 1000, UTC)


@pytest.fixture(scope="session")
def pki() -> Pki:
    """Return a good chain under a root of our own."""
    return make_pki()


@pytest.fixture(scope="session")
def genuine() -> dict[str, Genuine]:
    """Return the documents that AWS signed, by file name."""
    facts = json.loads((VECTORS / "expected.json").read_text())
    return {each["file"]: Genuine((VECTORS / each["file"]).read_bytes(), each) for each in facts}
