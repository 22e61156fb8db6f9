"""The fuzz targets by name. Not imported here: the fuzzing process instruments a module as it is imported.

Called by `fuzz.__main__`, `fuzz.child`, `fuzz.make_corpus` and tests/fuzz. May import: the standard library, fuzz.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Final

from fuzz.target import Target

CORPUS: Final = Path(__file__).parent / "corpus"
CRASHES: Final = Path(__file__).parent / "crashes"

#: Each is the module fuzz.targets.NAME.
NAMES: Final = (
    "attestation_cbor",
    "attestation_documents",
    "attestation_verification",
    "cms",
    "cose",
    "enclave_protocol",
    "engine_protocol",
    "frames",
    "headers",
    "job_forms",
    "json_requests",
    "key_policies",
    "payloads",
    "policy_reviews",
    "queue_messages",
    "recipient_keys",
    "result_bodies",
    "safetensors_headers",
    "sealed_objects",
    "strict_cbor",
    "strict_json",
)


def load(name: str) -> Target:
    """Import a target and, with it, the parser that it tests."""
    return load_module(f"fuzz.targets.{name}")


def load_module(module: str) -> Target:
    """Import the target that a module makes."""
    target = importlib.import_module(module).TARGET
    assert isinstance(target, Target)
    return target
