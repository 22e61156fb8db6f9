"""Requests and responses of the enclave socket (docs/spec.md §6): what is accepted builds the received bytes again."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from fuzz.target import MutateBytes, Target
from fuzz.values import cbor_mutation
from mrgc.errors import BY_CODE, ExpiredError, FormatError, InternalError, MrgcError
from mrgc.wire import enclave_protocol as protocol
from mrgc.wire import frames
from mrgc.wire.enclave_protocol import Op, Use
from mrgc.wire.frames import Frame
from mrgc.wire.strict_cbor import Buffer

_JOBS = 2

_Built = list[Buffer]
#: Of each op: parse a request and build it again.
_REQUESTS: dict[str, Callable[[Frame], _Built]] = {
    Op.HELLO: lambda f: protocol.hello_request(f.id, protocol.parse_hello(f)),
    Op.CREDENTIALS: lambda f: protocol.credentials_request(f.id, protocol.parse_credentials(f)),
    Op.ATTEST: lambda f: protocol.attest_request(f.id, protocol.parse_attest(f)),
    Op.OPEN_BATCH: lambda f: protocol.open_batch_request(f.id, protocol.parse_open_batch(f)),
    Op.SEAL_BATCH: lambda f: protocol.seal_batch_request(f.id, protocol.parse_seal_batch(f)),
}
#: Of each op: parse a response and build it again.
_RESPONSES: dict[str, Callable[[Frame], _Built]] = {
    Op.OPEN_BATCH: lambda f: protocol.open_batch_response(f.id, protocol.parse_opened(f, _JOBS)),
    Op.SEAL_BATCH: lambda f: protocol.seal_batch_response(f.id, _sealed(f)),
    Op.HEALTH: lambda f: protocol.health_response(f.id, protocol.parse_health(f)),
    Op.METRICS: lambda f: protocol.metrics_response(f.id, protocol.parse_metrics(f)),
}


def check(data: bytes) -> bool:
    """Parse one frame body as the request and as the response that its op says it is."""
    try:
        frame = frames.decode(data)
    except FormatError:
        return False
    is_request, is_response = _is_request(frame, data), _is_response(frame, data)
    return is_request or is_response


def _is_request(frame: Frame, data: bytes) -> bool:
    try:
        built = _REQUESTS[frame.op](frame) if frame.op in _REQUESTS else None
    except FormatError:
        return False
    return built is not None and _ensure_same(built, data)


def _is_response(frame: Frame, data: bytes) -> bool:
    try:
        built = _RESPONSES[frame.op](frame) if frame.op in _RESPONSES else None
    except MrgcError:
        return False
    # A code that this version does not know is read as another one, and a flag may be any integer: not canonical.
    if built is None or frame.op == Op.HEALTH or any(code not in BY_CODE for code in _codes(frame)):
        return built is not None
    return _ensure_same(built, data)


def _sealed(frame: Frame) -> list[bytes | MrgcError]:
    return [o if isinstance(o, MrgcError) else bytes(o) for o in protocol.parse_sealed(frame, _JOBS)]


def _codes(frame: Frame) -> list[str]:
    return [outcome["code"] for outcome in frame.header.get("outcomes", ()) if "code" in outcome]


def _ensure_same(built: _Built, data: bytes) -> bool:
    assert b"".join(built)[frames.LENGTH_BYTES :] == data
    return True


def seeds() -> dict[str, bytes]:
    """Every message of the protocol, and a few that break it."""
    opened = protocol.Opened(bytes(32), bytes(40), b"plaintext")
    seal = protocol.SealRequest(bytes(32), bytes(40), "ok", "m@sha256:" + "0" * 64, "application/json", b"a", b"b")
    messages = {
        "hello": protocol.hello_request(0, protocol.Hello(bytes(32), False)),
        "credentials": protocol.credentials_request(1, protocol.Credentials("AKIA", "secret", "token", 1_795_000_000)),
        "attest": protocol.attest_request(2, protocol.AttestRequest(bytes(16), Use.IDENTITY)),
        "open-batch": protocol.open_batch_request(3, [b"job", b"another job"]),
        "seal-batch": protocol.seal_batch_request(4, [seal, seal]),
        "health": protocol.plain_request(5, Op.HEALTH),
        "metrics": protocol.plain_request(6, Op.METRICS),
        "unknown-op": frames.encode("challenge", 7, {}),
        "short-token": frames.encode(Op.HELLO, 8, {"token": bytes(31), "json": 0}),
        "no-jobs": protocol.open_batch_request(9, []),
        "opened": protocol.open_batch_response(3, [opened, ExpiredError()]),
        "sealed": protocol.seal_batch_response(4, [b"result", InternalError()]),
        "healthy": protocol.health_response(5, protocol.Health("00" * 8, True, True, True, 2, 60)),
        "counters": protocol.metrics_response(6, {"jobs_opened": 1, "results_sealed": 2}),
        "refusal": protocol.error_response(Op.OPEN_BATCH, 3, ExpiredError()),
        "unknown-code": frames.encode(Op.OPEN_BATCH, 3, {"outcomes": [{"code": "new"}, {"code": "auth"}]}),
        "document": protocol.document_response(2, b"document"),
    }
    return {name: b"".join(message)[frames.LENGTH_BYTES :] for name, message in messages.items()}


def mutate(data: bytes, random: Random, mutate_bytes: MutateBytes) -> bytes:
    """Change the header and state its new length, or change any byte."""
    if len(data) < frames.LENGTH_BYTES or random.randrange(4) == 0:
        return mutate_bytes(data)
    end = frames.LENGTH_BYTES + int.from_bytes(data[: frames.LENGTH_BYTES], "big")
    header = cbor_mutation(data[frames.LENGTH_BYTES : end], random, mutate_bytes)
    return len(header).to_bytes(frames.LENGTH_BYTES, "big") + header + data[end:]


TARGET = Target(check, seeds, mutate)
