"""Sealed objects (docs/spec.md §1): the layout is exact, and only genuine objects open."""

from __future__ import annotations

import json
from functools import cache
from random import Random

from fuzz.target import VECTORS, MutateBytes, Target
from fuzz.targets import headers
from fuzz.values import cbor_mutation
from mrgc.errors import AuthenticationError, FormatError
from mrgc.wire import strict_cbor
from mrgc.wire.sealed import (
    SealedJob,
    SealedResult,
    SealedStandalone,
    open_job,
    open_result,
    parse_job,
    parse_job_aad,
    parse_result,
    parse_standalone,
)

_DATA_KEY = bytes(range(32))  # that of every vector
_PREFIX_BYTES = 12
#: A deployment's cap below the specification's, so that TooLargeError is met by short inputs.
_MAX_BODY_BYTES = 1_024


def check(data: bytes) -> bool:
    """Parse as every kind, and as the AAD of a job; open what parses."""
    _check_aad(data)
    accepted = [kind(data) for kind in (_check_job, _check_result, _check_standalone)]
    assert sum(accepted) <= 1
    return any(accepted)


def _check_job(data: bytes) -> bool:
    try:
        job = parse_job(data, max_body_bytes=_MAX_BODY_BYTES)
    except FormatError:
        return False
    assert job.aad + bytes(job.ciphertext) == data
    assert parse_job_aad(job.aad) == job.header
    _check_layout(job)
    try:
        open_job(job, data_key=_DATA_KEY)
    except AuthenticationError:
        return True
    assert data in _genuine()
    return True


def _check_result(data: bytes) -> bool:
    try:
        result = parse_result(data, max_body_bytes=_MAX_BODY_BYTES)
    except FormatError:
        return False
    assert result.aad + bytes(result.ciphertext) + bytes(result.trailer) == data
    _check_layout(result)
    try:
        open_result(result, data_key=_DATA_KEY)
    except AuthenticationError:
        return True
    # The trailer is a receipt with a signature of its own, not part of what the tag covers.
    assert data[: len(data) - len(result.trailer)] in _genuine()
    return True


def _check_standalone(data: bytes) -> bool:
    try:
        standalone = parse_standalone(data, max_body_bytes=_MAX_BODY_BYTES)
    except FormatError:
        return False
    assert standalone.aad + bytes(standalone.ciphertext) == data
    _check_layout(standalone)
    return True


def _check_layout(sealed: SealedJob | SealedResult | SealedStandalone) -> None:
    header = strict_cbor.encode(sealed.header.to_map())
    assert sealed.aad[_PREFIX_BYTES:] == header
    assert sealed.aad[6:8] == len(header).to_bytes(2, "big")
    assert sealed.aad[8:12] == (len(sealed.ciphertext) - 16).to_bytes(4, "big")


def _check_aad(data: bytes) -> None:
    try:
        header = parse_job_aad(data)
    except FormatError:
        return
    assert data[_PREFIX_BYTES:] == strict_cbor.encode(header.to_map())


def seeds() -> dict[str, bytes]:
    """The sealed vectors, accepted and refused, the AAD of one, and the layout of a standalone object."""
    found = {
        f"{vector['kind']} {vector['name']}": bytes.fromhex(vector["object"])
        for vector in json.loads((VECTORS / "sealed" / "vectors.json").read_text())
    }
    header = strict_cbor.encode(headers.STANDALONE)
    found["standalone"] = b"mrgc\x01\x03" + len(header).to_bytes(2, "big") + bytes(3) + b"\x01" + header + bytes(17)
    found["aad of a job"] = found["job first vector of the specification"][: _PREFIX_BYTES + 335]
    return {name: data for name, data in found.items() if len(data) <= TARGET.max_bytes}


@cache
def _genuine() -> frozenset[bytes]:
    """Return what was sealed under the vectors' key, without trailers."""
    objects = set()
    for data in seeds().values():
        header_bytes, body_bytes = int.from_bytes(data[6:8], "big"), int.from_bytes(data[8:12], "big")
        objects.add(data[: _PREFIX_BYTES + header_bytes + body_bytes + 16])
    return frozenset(objects)


def mutate(data: bytes, random: Random, mutate_bytes: MutateBytes) -> bytes:
    """Change the header and state its new length, or change any byte."""
    if len(data) < _PREFIX_BYTES or random.randrange(3) == 0:
        return mutate_bytes(data)
    start, end = _PREFIX_BYTES, _PREFIX_BYTES + int.from_bytes(data[6:8], "big")
    header = cbor_mutation(data[start:end], random, mutate_bytes)[:0xFFFF]
    return data[:6] + len(header).to_bytes(2, "big") + data[8:start] + header + data[end:]


TARGET = Target(check, seeds, mutate)
