"""Opened payloads (docs/spec.md §3), JSON and CBOR: authentic, and yet whatever a tenant likes to send."""

from __future__ import annotations

from random import Random

from fuzz.target import MutateBytes, Target
from fuzz.targets import strict_json
from fuzz.values import cbor_mutation
from mrgc.errors import PayloadError
from mrgc.wire import strict_cbor
from mrgc.wire.headers import CBOR_TYPE, JSON_TYPE, SAFETENSORS_TYPE
from worker.engine import payload

_ITEMS = 2


def check(data: bytes) -> bool:
    """Parse a payload of two inputs; the first byte says of which type."""
    content_type = CBOR_TYPE if data[:1] == b"\x00" else JSON_TYPE
    try:
        parsed = payload.parse(data[1:], content_type=content_type, items=_ITEMS)
    except PayloadError:
        return False
    assert len(parsed.inputs) == _ITEMS
    assert type(parsed.truncate) is bool
    assert parsed.accept in (JSON_TYPE, SAFETENSORS_TYPE)
    assert parsed.ids in (("", "u16", "u32") if content_type == CBOR_TYPE else ("",))
    assert parsed.parameters.keys().isdisjoint({"truncate", "accept", "ids"})
    return True


def seeds() -> dict[str, bytes]:
    """Payloads that are served, and some that are not."""
    inputs = ["one", "two"]
    return {
        "json": b'\x01{"inputs": ["one", "two"], "parameters": {"truncate": true}} \n',
        "json-safetensors": b'\x01{"inputs": ["", 2], "parameters": {"accept": "application/vnd.safetensors"}}',
        "json-three-inputs": b'\x01{"inputs": ["one", "two", "three"]}',
        "json-of-the-model": b'\x01{"inputs": ["one", "two"], "parameters": {"labels": ["good", "bad"]}}',
        "json-ids": b'\x01{"inputs": ["one", "two"], "parameters": {"ids": "u16"}}',
        "json-accept-a-list": b'\x01{"inputs": ["one", "two"], "parameters": {"accept": []}}',
        "cbor": b"\x00" + strict_cbor.encode({"inputs": inputs}),
        "cbor-parameters": b"\x00" + strict_cbor.encode({"inputs": inputs, "parameters": {"truncate": False}}),
        "cbor-ids": b"\x00" + strict_cbor.encode({"inputs": [b"\1\0", b""], "parameters": {"ids": "u16"}}),
        "cbor-bytes": b"\x00" + strict_cbor.encode({"inputs": [b"one", {"a": [1]}]}),
        "cbor-many-values": b"\x00" + strict_cbor.encode({"inputs": [[0] * 80, "two"]}),
        "cbor-cut": b"\x00" + strict_cbor.encode({"inputs": inputs})[:-1],
        "nothing": b"",
    }


def mutate(data: bytes, random: Random, mutate_bytes: MutateBytes) -> bytes:
    """Change one value, or any byte, seldom the type."""
    if random.randrange(8) == 0:
        return mutate_bytes(data)
    body = cbor_mutation if data[:1] == b"\x00" else strict_json.mutate
    return data[:1] + body(data[1:], random, mutate_bytes)


TARGET = Target(check, seeds, mutate)
