"""Write vectors.json: sealed objects for every accept and reject rule of docs/spec.md §1 to §4 and §8.

Run `python -m tests.vectors.sealed.make`; the output is deterministic. The generator lays bytes out by itself,
with hashlib, hmac and cbor2 only, so that it can break one rule at a time and shares no code with the product.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TARGET = Path(__file__).with_name("vectors.json")
DATA_KEY = bytes(range(32))
SALT = b"\x5a" * 32
JOB = bytes(range(16))
NOW = 1_795_000_000
PAYLOAD = b'{"inputs":["x"]}'
ARN = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
DIGEST = "@sha256:" + "ab" * 32

Fields = dict[str, Any]


def job_fields() -> Fields:
    """Fields of the specification's first vector, less salt and commitment."""
    return {
        "tenant": "acme",
        "job": JOB,
        "key_arn": ARN,
        "edk": b"wrapped",
        "context": {"mrgc:use": "job", "mrgc:tenant": "acme"},
        "model": "all-minilm-l6-v2",
        "type": "application/json",
        "items": 1,
        "created": NOW,
        "expires": NOW + 3600,
        "floor": 0,
    }


def result_fields(request: bytes) -> Fields:
    """Fields of a plain result of that job."""
    shared = {name: job_fields()[name] for name in ("tenant", "job", "key_arn", "edk", "context")}
    return shared | {
        "request": request,
        "model": "all-minilm-l6-v2" + DIGEST,
        "type": "application/json",
        "status": "ok",
        "tier": 0,
        "created": NOW + 5,
    }


def derive(info: bytes, data_key: bytes = DATA_KEY) -> tuple[bytes, bytes]:
    """Key schedule of docs/spec.md §1, from the standard library alone."""
    prk = hmac.new(SALT, data_key, hashlib.sha512).digest()
    okm = hmac.new(prk, info + b"\x01", hashlib.sha512).digest()
    return okm[:32], okm[32:]


def lay_out(kind: int, fields: Fields, info: bytes, plaintext: bytes = PAYLOAD, **prefix: int) -> bytes:
    """Lay out one object; `prefix` overrides version, header_length or body_length."""
    key, commit = derive(info)
    header = cbor2.dumps({"salt": SALT, "commit": commit} | fields, canonical=True)
    head = b"mrgc" + struct.pack(
        ">BBHI",
        prefix.get("version", 1),
        kind,
        prefix.get("header_length", len(header)),
        prefix.get("body_length", len(plaintext)),
    )
    return head + header + AESGCM(key).encrypt(bytes(12), plaintext, head + header)


def job_object(fields: Fields | None = None, plaintext: bytes = PAYLOAD, **prefix: int) -> bytes:
    """Lay out a job, the first vector unless told otherwise."""
    return lay_out(1, fields or job_fields(), b"mrgc/1/job\x00" + JOB, plaintext, **prefix)


REQUEST = hashlib.sha256(job_object()).digest()


def result_object(fields: Fields, plaintext: bytes = b'{"embeddings":[[0.5]],"errors":[]}') -> bytes:
    """Lay out a result of the first vector's job."""
    return lay_out(2, fields, b"mrgc/1/result\x00" + JOB + REQUEST, plaintext)


def flip(data: bytes, index: int) -> bytes:
    """Flip the lowest bit of one byte."""
    mutable = bytearray(data)
    mutable[index] ^= 1
    return bytes(mutable)


def reheader(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Replace the encoded header, fixing H, leaving the rest: only form can be judged."""
    (length,) = struct.unpack_from(">H", data, 6)
    header = change(data[12 : 12 + length])
    return data[:6] + struct.pack(">H", len(header)) + data[8:12] + header + data[12 + length :]


def accepted_jobs() -> Iterator[tuple[str, bytes]]:
    """Jobs that every reader must open."""
    yield "first vector of the specification", job_object()
    yield (
        "every optional field",
        job_object(
            job_fields()
            | {
                "floor": 1,
                "result": "s3://bucket-1/a/b.c=d/",
                "hosts": [b"\x01" * 32, b"\x02" * 32],
                "policy": b"\x03" * 32,
                "ext": {"note": "text", "n": 7, "b": b"\x00"},
            }
        ),
    )
    yield "cbor payload type", job_object(job_fields() | {"type": "application/cbor"})
    yield "model with digest", job_object(job_fields() | {"model": "a" * 63 + DIGEST})
    yield (
        "multi-region key in a partition",
        job_object(job_fields() | {"key_arn": "arn:aws-cn:kms:cn-north-1:123456789012:key/mrk-" + "0" * 32}),
    )
    yield "longest legal lifetime", job_object(job_fields() | {"expires": NOW + 1_209_600})
    yield (
        "eight context entries",
        job_object(job_fields() | {"context": job_fields()["context"] | {f"k{i}": "v" * 256 for i in range(6)}}),
    )
    yield "largest items and edk", job_object(job_fields() | {"items": 16_384, "edk": b"e" * 6_144})


def bad_jobs() -> Iterator[tuple[str, str, bytes]]:
    """Jobs that every reader must refuse, with the code."""
    changes: list[tuple[str, Fields]] = [
        ("tenant in capitals", {"tenant": "Acme"}),
        ("tenant of 64 characters", {"tenant": "a" * 64}),
        ("tenant differs from its context", {"tenant": "other"}),
        ("tenant with a line end", {"tenant": "acme\n"}),
        ("job of 15 bytes", {"job": bytes(15)}),
        ("job as text", {"job": "0" * 16}),
        ("alias for a key", {"key_arn": "arn:aws:kms:eu-west-1:123456789012:alias/a"}),
        ("account of 11 digits", {"key_arn": ARN.replace("123456789012", "12345678901")}),
        ("empty edk", {"edk": b""}),
        ("edk of 6,145 bytes", {"edk": b"e" * 6_145}),
        ("context without use", {"context": {"mrgc:tenant": "acme", "k": "v"}}),
        ("context for another use", {"context": {"mrgc:tenant": "acme", "mrgc:use": "payload"}}),
        ("context of nine", {"context": job_fields()["context"] | {f"k{i}": "v" for i in range(7)}}),
        ("context key of AWS", {"context": job_fields()["context"] | {"aws:x": "v"}}),
        ("context value empty", {"context": job_fields()["context"] | {"k": ""}}),
        ("context value not ASCII", {"context": job_fields()["context"] | {"k": "é"}}),
        ("context value a number", {"context": job_fields()["context"] | {"k": 1}}),
        ("salt of 31 bytes", {"salt": bytes(31)}),
        ("commit of 33 bytes", {"commit": bytes(33)}),
        ("model with a short digest", {"model": "m@sha256:ab"}),
        ("unknown payload type", {"type": "text/plain"}),
        ("no items", {"items": 0}),
        ("16,385 items", {"items": 16_385}),
        ("items as bool", {"items": True}),
        ("created after expires", {"expires": NOW}),
        ("lifetime over 14 days", {"expires": NOW + 1_209_601}),
        ("time of 2^40", {"created": 1 << 40, "expires": (1 << 40) + 1}),
        ("floor 4", {"floor": 4}),
        ("negative floor", {"floor": -1}),
        ("result outside s3", {"result": "http://bucket/a/"}),
        ("result without trailing slash", {"result": "s3://bucket/a"}),
        ("result with a dot segment", {"result": "s3://bucket/../"}),
        ("hosts below floor 1", {"hosts": [bytes(32)]}),
        ("nine hosts", {"floor": 1, "hosts": [bytes(32)] * 9}),
        ("no host in hosts", {"floor": 1, "hosts": []}),
        ("receipt 2", {"receipt": 2}),
        ("policy of 31 bytes", {"policy": bytes(31)}),
        ("ext of nine", {"ext": {f"k{i}": 1 for i in range(9)}}),
        ("ext with a list", {"ext": {"k": [1]}}),
        ("unknown key", {"extra": 1}),
        ("null field", {"result": None}),
        ("float", {"items": 1.0}),
    ]
    for name, change in changes:
        yield name, "bad_format", job_object(job_fields() | change)
    missing = job_fields()
    del missing["floor"]
    yield "missing key", "bad_format", job_object(missing)
    good = job_object()
    yield "other magic", "bad_format", b"MRGC" + good[4:]
    yield "version 2", "bad_format", job_object(version=2)
    yield "kind result", "bad_format", good[:5] + b"\x02" + good[6:]
    yield "kind 0", "bad_format", good[:5] + b"\x00" + good[6:]
    yield "header length 0", "bad_format", job_object(header_length=0)
    yield "header length 16,385", "bad_format", job_object(header_length=16_385)
    yield "body length 0", "bad_format", job_object(plaintext=b"", body_length=0)
    yield "body length over the cap", "bad_format", job_object(body_length=33_554_433)
    yield "cut inside the prefix", "bad_format", good[:11]
    yield "cut inside the header", "bad_format", good[:100]
    yield "cut inside the tag", "bad_format", good[:-1]
    yield "byte after the tag", "bad_format", good + b"\x00"
    yield "header with trailing byte", "bad_format", reheader(good, lambda h: h + b"\x00")
    yield "header not a map", "bad_format", reheader(good, lambda _: cbor2.dumps([1]))
    yield "header with indefinite map", "bad_format", reheader(good, lambda h: b"\xbf" + h[1:] + b"\xff")
    yield (
        "header with long integer",
        "bad_format",
        reheader(good, lambda h: h.replace(b"eitems\x01", b"eitems\x18\x01")),
    )
    yield "header with tag", "bad_format", reheader(good, lambda h: b"\xd9\xd9\xf7" + h)
    yield (
        "header out of order",
        "bad_format",
        reheader(good, lambda h: cbor2.dumps(dict(reversed(cbor2.loads(h).items())))),
    )
    yield (
        "header with duplicate key",
        "bad_format",
        reheader(good, lambda h: bytes([h[0] + 1]) + h[1:] + b"\x65floor\x00"),
    )
    yield "header with bad utf-8", "bad_format", reheader(good, lambda h: h.replace(b"dacme", b"dac\xffe"))
    yield "flipped body", "auth", flip(good, -17)
    yield "flipped tag", "auth", flip(good, -1)
    yield "another commitment", "auth", job_object(job_fields() | {"commit": bytes(32)})
    yield "another salt", "auth", job_object(job_fields() | {"salt": bytes(32)})
    yield "another edk, header resealed by nobody", "auth", reheader(good, lambda h: h.replace(b"wrapped", b"swapped"))
    yield "job id of another job", "auth", job_object(job_fields() | {"job": bytes(16)})
    yield "created 301 s ahead", "expired", job_object(job_fields() | {"created": NOW + 301})
    yield "expired now", "expired", job_object(job_fields() | {"created": NOW - 10, "expires": NOW})


def results() -> Iterator[tuple[str, str, bytes]]:
    """Results to open and to refuse."""
    base = result_fields(REQUEST)
    yield "json result", "ok", result_object(base)
    yield (
        "partial safetensors result",
        "ok",
        result_object(base | {"status": "partial", "type": "application/vnd.safetensors"}),
    )
    yield "failed result", "ok", result_object(base | {"status": "failed"}, b'{"errors":[{"code":"bad_payload"}]}')
    yield "result of tier 1 with host", "ok", result_object(base | {"tier": 1, "host": b"\x07" * 32})
    yield (
        "octet stream of the JSON protocol",
        "ok",
        result_object(base | {"model": "json@sha256:" + "0" * 64, "type": "application/octet-stream"}),
    )
    yield "receipt with trailer", "ok", result_object(base | {"receipt": b"\x09" * 32}) + b"trailer"
    changes: list[tuple[str, Fields]] = [
        ("model without digest", {"model": "all-minilm-l6-v2"}),
        ("octet stream of another model", {"type": "application/octet-stream"}),
        ("failed result as safetensors", {"status": "failed", "type": "application/vnd.safetensors"}),
        ("unknown status", {"status": "done"}),
        ("tier 4", {"tier": 4}),
        ("host at tier 0", {"host": b"\x07" * 32}),
        ("request of 31 bytes", {"request": bytes(31)}),
        ("receipt without trailer", {"receipt": b"\x09" * 32}),
        ("unknown key in a result", {"floor": 0}),
    ]
    for name, change in changes:
        yield name, "bad_format", result_object(base | change)
    yield "trailer without receipt", "bad_format", result_object(base) + b"trailer"
    yield "trailer of 16,385 bytes", "bad_format", result_object(base | {"receipt": b"\x09" * 32}) + bytes(16_385)
    yield "result for another request", "auth", result_object(base | {"request": bytes(32)})
    yield "flipped result", "auth", flip(result_object(base), -20)


def standalone_fields() -> Fields:
    """Fields of a plain standalone object."""
    return {
        "tenant": "acme",
        "key_arn": ARN,
        "edk": b"wrapped",
        "context": {"mrgc:tenant": "acme", "mrgc:use": "standalone"},
        "request_id": "req-abc-123",
        "created": NOW,
    }


def standalone_object(fields: Fields) -> bytes:
    """Lay out a standalone object."""
    return lay_out(3, fields, b"mrgc/1/standalone\x00", b"an answer")


def standalones() -> Iterator[tuple[str, str, bytes]]:
    """Standalone objects to open and to refuse."""
    base = standalone_fields()
    good = standalone_object(base)
    yield "standalone object", "ok", good
    yield "longest request id", "ok", standalone_object(base | {"request_id": " ~" * 64})
    changes: list[tuple[str, Fields]] = [
        ("empty request id", {"request_id": ""}),
        ("request id of 129 characters", {"request_id": "r" * 129}),
        ("request id with a line end", {"request_id": "r\n"}),
        ("request id not ASCII", {"request_id": "é"}),
        ("standalone context for jobs", {"context": {"mrgc:tenant": "acme", "mrgc:use": "job"}}),
        ("standalone context of another tenant", {"context": base["context"] | {"mrgc:tenant": "globex"}}),
        ("standalone context of three", {"context": base["context"] | {"k": "v"}}),
        ("standalone edk of 6,145 bytes", {"edk": b"e" * 6_145}),
        ("standalone created at 2^40", {"created": 1 << 40}),
        ("standalone with a job", {"job": JOB}),
        ("standalone with ext", {"ext": {}}),
    ]
    for name, change in changes:
        yield name, "bad_format", standalone_object(base | change)
    missing = {name: value for name, value in base.items() if name != "request_id"}
    yield "standalone without request id", "bad_format", standalone_object(missing)
    yield "standalone with a byte after the tag", "bad_format", good + b"\x00"
    yield "standalone posing as a result", "bad_format", good[:5] + b"\x02" + good[6:]
    yield "job posing as a standalone object", "bad_format", (job := job_object())[:5] + b"\x03" + job[6:]
    yield "another request id, resealed by nobody", "auth", reheader(good, lambda h: h.replace(b"abc-123", b"abc-124"))
    yield "flipped standalone body", "auth", flip(good, -17)
    yield "standalone with another commitment", "auth", standalone_object(base | {"commit": bytes(32)})


def vectors() -> list[dict[str, Any]]:
    """All vectors, in the order of the file."""
    rows = [("job", name, "ok", data) for name, data in accepted_jobs()]
    rows += [("job", *row) for row in bad_jobs()]
    rows += [("result", *row) for row in results()]
    rows += [("standalone", *row) for row in standalones()]
    return [
        {"kind": kind, "name": name, "expect": expect, "now": NOW, "data_key": DATA_KEY.hex(), "object": data.hex()}
        for kind, name, expect, data in rows
    ]


if __name__ == "__main__":
    TARGET.write_text(json.dumps(vectors(), indent=1) + "\n")
