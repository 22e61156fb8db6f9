"""Requests of the JSON protocol (docs/spec.md §8): cut and parsed in pieces, and yet what a plain reader sees."""

from __future__ import annotations

import base64
import binascii
import json
import re
from random import Random
from typing import Any

from enclave import json_requests
from enclave.json_requests import DecryptRequest, EncryptRequest, HealthRequest, HelloRequest
from fuzz.target import MutateBytes, Target
from fuzz.targets import strict_json
from mrgc.errors import FormatError
from mrgc.wire.headers import KEY_ARN, TENANT

_KEY = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
_TOKEN = base64.b64encode(bytes(32)).decode()
_REQUEST_ID = re.compile(r"[\x20-\x7e]{1,128}")


def check(data: bytes) -> bool:
    """Read one request, and read it again with the standard library alone."""
    body = bytearray(data)
    try:
        request = json_requests.parse(json_requests.read(body))
    except FormatError:
        request = None
    assert body == data
    if len(data) <= json_requests.MAX_REST_BYTES:
        assert _members(request) == _plainly(data)
    return request is not None


def _members(request: json_requests.Request | None) -> dict[str, Any] | None:
    match request:
        case HelloRequest(token):
            return {"action": "hello", "token": token}
        case HealthRequest(request_id):
            return {"action": "health", "request_id": request_id}
        case DecryptRequest(request_id, tenant, key_arn, payload):
            fields = {"request_id": request_id, "tenant_id": tenant, "kms_key_arn": key_arn}
            return {"action": "decrypt", "encrypted_payload": bytes(payload)} | fields
        case EncryptRequest(request_id, key_arn, body):
            fields = {"request_id": request_id, "kms_key_arn": key_arn}
            return {"action": "encrypt", "plaintext_result": bytes(body)} | fields
    return None


def _plainly(data: bytes) -> dict[str, Any] | None:
    try:
        members = json.loads(data.decode("utf-8"), object_pairs_hook=_once)
        if type(members) is not dict or not all(type(value) is str for value in members.values()):
            return None
        return members if _RULES[members.pop("action")](members) else None
    except (ValueError, KeyError, RecursionError):
        return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("name twice")
    return dict(pairs)


def _is_hello(members: dict[str, Any]) -> bool:
    members["token"] = _decoded(members["token"])
    found, members["action"] = members.keys() == {"token"}, "hello"
    return found and len(members["token"]) == 32


def _is_health(members: dict[str, Any]) -> bool:
    found, members["action"] = members.keys() == {"request_id"}, "health"
    return found and _is_id(members)


def _is_decrypt(members: dict[str, Any]) -> bool:
    names = {"encrypted_payload", "kms_key_arn", "tenant_id", "request_id"}
    found, members["action"] = members.keys() == names, "decrypt"
    members["encrypted_payload"] = _decoded(members["encrypted_payload"])
    return found and _is_id(members) and _is_key(members) and TENANT.fullmatch(members["tenant_id"]) is not None


def _is_encrypt(members: dict[str, Any]) -> bool:
    found, members["action"] = members.keys() == {"plaintext_result", "kms_key_arn", "request_id"}, "encrypt"
    members["plaintext_result"] = _decoded(members["plaintext_result"])
    return found and _is_id(members) and _is_key(members)


_RULES = {"hello": _is_hello, "health": _is_health, "decrypt": _is_decrypt, "encrypt": _is_encrypt}


def _is_id(members: dict[str, Any]) -> bool:
    return _REQUEST_ID.fullmatch(members["request_id"]) is not None


def _is_key(members: dict[str, Any]) -> bool:
    return KEY_ARN.fullmatch(members["kms_key_arn"]) is not None


def _decoded(text: str) -> bytes:
    data = binascii.a2b_base64(text, strict_mode=True)
    if not data or base64.b64encode(data).decode() != text:
        raise ValueError("not the one encoding")
    return data


def seeds() -> dict[str, bytes]:
    """Every action, and requests whose payload is easily cut at the wrong place."""
    decrypt = {
        "action": "decrypt",
        "encrypted_payload": "bXJnYw==",
        "kms_key_arn": _KEY,
        "tenant_id": "acme",
        "request_id": "request 1",
    }
    encrypt = {"action": "encrypt", "plaintext_result": "e30=", "kms_key_arn": _KEY, "request_id": "request 1"}
    encoded = {
        "hello": {"action": "hello", "token": _TOKEN},
        "health": {"action": "health", "request_id": "1"},
        "decrypt": decrypt,
        "encrypt": encrypt,
        "unknown-action": {"action": "sign", "request_id": "1"},
        "unknown-field": decrypt | {"plaintext_result": "e30="},
        "payload-in-a-map": decrypt | {"tenant_id": {"encrypted_payload": "e30="}},
        "quote-before-name": decrypt | {'a"encrypted_payload': "e30="},
        "quoted-member": encrypt | {"request_id": '"plaintext_result": "e30="'},
        "no-payload": encrypt | {"plaintext_result": ""},
        "unused-bits": encrypt | {"plaintext_result": "e31="},
        "not-base64": encrypt | {"plaintext_result": "e3\n0="},
        "long-request-id": encrypt | {"request_id": "x" * 129},
    }
    found = {name: json.dumps(members).encode() for name, members in encoded.items()}
    return found | {
        "escaped-slash": found["encrypt"].replace(b"e30=", b"\\/\\/\\/\\/"),
        "escaped-name": found["encrypt"].replace(b"plaintext_result", b"plaintext\\u005fresult"),
        "payload-twice": found["encrypt"][:-1] + b', "plaintext_result": ""}',
        "raw-control": found["encrypt"].replace(b"e30=", b"e3\x000"),
        "not-utf8-payload": found["encrypt"].replace(b"e30=", b"\xff\xff\xff\xff"),
        "open-payload": found["encrypt"][:50],
    }


def mutate(data: bytes, random: Random, mutate_bytes: MutateBytes) -> bytes:
    """Change what a payload's base64 encodes, one member, or any byte; at times put in what may be cut wrongly."""
    match random.randrange(6):
        case 0:
            at = data.find(b'"', random.randrange(len(data) + 1))
            return data[:at] + random.choice((b"\\", b'"', b'"plaintext_result":"e30=",', b" :")) + data[at:]
        case 1 | 2:
            return _ENCODED.sub(lambda found: _encoded_anew(found[0], mutate_bytes), data)
        case _:
            return strict_json.mutate(data, random, mutate_bytes)


_ENCODED = re.compile(rb'(?<=")[A-Za-z0-9+/]+={0,2}(?=",)')


def _encoded_anew(text: bytes, mutate_bytes: MutateBytes) -> bytes:
    try:
        return base64.b64encode(mutate_bytes(base64.b64decode(text, validate=True)))
    except binascii.Error:
        return text


TARGET = Target(check, seeds, mutate, max_bytes=1_024)
