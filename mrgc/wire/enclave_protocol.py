"""Requests and responses of the enclave socket, op by op (docs/spec.md §6).

Builders return the buffers of a frame; parsers take a decoded frame, check every key, and raise. The enclave's
operations, the engine's enclave client and the enclave agent all use this one definition, so the two sides of
the socket cannot drift apart.

May import: the standard library, mrgc.errors, mrgc.wire.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

from mrgc.errors import EnclaveProtocolError, FormatError, MrgcError, from_code
from mrgc.wire import frames
from mrgc.wire.frames import Frame
from mrgc.wire.headers import HASH_BYTES
from mrgc.wire.strict_cbor import Buffer

TOKEN_BYTES: Final = 32
TICKET_BYTES: Final = 40
MAX_JOBS: Final = 1_024  #: docs/spec.md §6, jobs in one frame.
NONCE_BYTES: Final = range(16, 65)  #: docs/spec.md §6, attest.
MAX_CREDENTIAL_CHARS: Final = 8_192  #: An STS session token is opaque; those seen stay below 2 KiB.
#: Keys of one result in a seal_batch request.
_CLAIM: Final[dict[str, type]] = {"request": bytes, "ticket": bytes, "status": str, "model": str, "type": str}


class Op(StrEnum):
    """Operations that this version serves."""

    HELLO = "hello"
    CREDENTIALS = "credentials"
    ATTEST = "attest"
    OPEN_BATCH = "open_batch"
    SEAL_BATCH = "seal_batch"
    HEALTH = "health"
    METRICS = "metrics"


class Use(StrEnum):
    """What an attestation document given to a caller is for."""

    IDENTITY = "identity"
    RECEIPT = "receipt"


class Hello(NamedTuple):
    """Start of a connection; the first one after boot sets token and json."""

    token: bytes
    json: bool

    def __repr__(self) -> str:
        return "Hello(token=hidden)"


class Credentials(NamedTuple):
    """Role credentials for KMS, from the enclave agent."""

    access_key: str
    secret_key: str
    token: str
    expires: int

    def __repr__(self) -> str:
        return f"Credentials(hidden, expires={self.expires})"


class AttestRequest(NamedTuple):
    """A caller's wish for an attestation document."""

    nonce: bytes
    use: Use


class Opened(NamedTuple):
    """One opened job: its request hash, the ticket that lets it be sealed, and its plaintext."""

    request: bytes
    ticket: bytes
    plaintext: Buffer

    def __repr__(self) -> str:
        return f"Opened(request={self.request.hex()}, plaintext of {len(self.plaintext)} bytes)"


class SealRequest(NamedTuple):
    """One result to seal: what the parent says of it, the AAD of its job, and its body."""

    request: bytes
    ticket: bytes
    status: str
    model: str
    type: str
    aad: Buffer
    body: Buffer

    def __repr__(self) -> str:
        return f"SealRequest(request={self.request.hex()}, status={self.status}, body of {len(self.body)} bytes)"


class Health(NamedTuple):
    """What anyone may know of an enclave."""

    boot: str
    hello: bool
    attestation_ready: bool
    kms_ready: bool
    connections: int
    uptime_s: int


# --- requests --------------------------------------------------------------------------------------------------


def hello_request(frame_id: int, hello: Hello) -> list[Buffer]:
    """Build a hello."""
    return frames.encode(Op.HELLO, frame_id, {"token": hello.token, "json": int(hello.json)})


def parse_hello(frame: Frame) -> Hello:
    """Parse a hello. Raises FormatError."""
    token, json = _fields(frame, token=bytes, json=int)
    _ensure(len(token) == TOKEN_BYTES and json in (0, 1), "hello")
    return Hello(token, bool(json))


def credentials_request(frame_id: int, credentials: Credentials) -> list[Buffer]:
    """Build the agent's push of role credentials."""
    return frames.encode(Op.CREDENTIALS, frame_id, credentials._asdict())


def parse_credentials(frame: Frame) -> Credentials:
    """Parse pushed credentials. Raises FormatError."""
    fields = _fields(frame, access_key=str, secret_key=str, token=str, expires=int)
    _ensure(all(len(text) <= MAX_CREDENTIAL_CHARS for text in fields[:3]), "credentials")
    _ensure(bool(fields[0]) and bool(fields[1]), "credentials")
    return Credentials(*fields)


def attest_request(frame_id: int, request: AttestRequest) -> list[Buffer]:
    """Build a request for an attestation document."""
    return frames.encode(Op.ATTEST, frame_id, {"nonce": request.nonce, "use": str(request.use)})


def parse_attest(frame: Frame) -> AttestRequest:
    """Parse a request for an attestation document. Raises FormatError."""
    nonce, use = _fields(frame, nonce=bytes, use=str)
    _ensure(len(nonce) in NONCE_BYTES and use in tuple(Use), "attest")
    return AttestRequest(nonce, Use(use))


def open_batch_request(frame_id: int, jobs: Sequence[Buffer]) -> list[Buffer]:
    """Build a request to open sealed jobs, at most 1,024."""
    return frames.encode(Op.OPEN_BATCH, frame_id, {}, jobs)


def parse_open_batch(frame: Frame) -> list[memoryview]:
    """Return the sealed jobs of a request. Raises FormatError."""
    _typed(frame.header, {})
    _ensure(1 <= len(frame.blobs) <= MAX_JOBS, "open_batch")
    return frame.blobs


def seal_batch_request(frame_id: int, results: Sequence[SealRequest]) -> list[Buffer]:
    """Build a request to seal results, at most 1,024."""
    claims = [
        {"type": r.type, "model": r.model, "status": r.status, "ticket": r.ticket, "request": r.request}
        for r in results
    ]
    blobs = [blob for result in results for blob in (result.aad, result.body)]
    return frames.encode(Op.SEAL_BATCH, frame_id, {"results": claims}, blobs)


def parse_seal_batch(frame: Frame) -> list[SealRequest]:
    """Return the results of a request to seal. Raises FormatError."""
    (claims,) = _typed(frame.header, {"results": list})
    _ensure(1 <= len(claims) <= MAX_JOBS and len(frame.blobs) == 2 * len(claims), "seal_batch")
    results = []
    for index, claim in enumerate(claims):
        request, ticket, status, model, content_type = _typed(claim, _CLAIM)
        _ensure(len(request) == HASH_BYTES and len(ticket) == TICKET_BYTES, "seal_batch")
        aad, body = frame.blobs[2 * index], frame.blobs[2 * index + 1]
        results.append(SealRequest(request, ticket, status, model, content_type, aad, body))
    return results


def plain_request(frame_id: int, op: Op) -> list[Buffer]:
    """Build a request without keys of its own: health, metrics."""
    return frames.encode(op, frame_id, {})


# --- responses -------------------------------------------------------------------------------------------------


def error_response(op: str, frame_id: int, error: MrgcError) -> list[Buffer]:
    """Build a response that carries nothing but the error's code."""
    return frames.encode(op, frame_id, {"code": error.code})


def done_response(op: Op, frame_id: int) -> list[Buffer]:
    """Build the empty response of hello and credentials."""
    return frames.encode(op, frame_id, {})


def document_response(frame_id: int, document: bytes) -> list[Buffer]:
    """Build the response of attest: one blob, the attestation document."""
    return frames.encode(Op.ATTEST, frame_id, {}, [document])


def open_batch_response(frame_id: int, outcomes: Sequence[Opened | MrgcError]) -> list[Buffer]:
    """Build the response of open_batch, one outcome per job in order."""
    maps = [
        {"code": o.code}
        if isinstance(o, MrgcError)
        else {"ok": len(o.plaintext), "ticket": o.ticket, "request": o.request}
        for o in outcomes
    ]
    blobs = [o.plaintext for o in outcomes if isinstance(o, Opened)]
    return frames.encode(Op.OPEN_BATCH, frame_id, {"outcomes": maps}, blobs)


def parse_opened(frame: Frame, jobs: int) -> list[Opened | MrgcError]:
    """Return the outcomes of open_batch for a request of `jobs` jobs, in order.

    Raises:
        MrgcError: the enclave answered the whole request with a code.
        EnclaveProtocolError: the response does not have one well-formed outcome per job.
    """
    opened: list[Opened | MrgcError] = []
    blobs = iter(frame.blobs)
    for outcome in _outcomes(frame, Op.OPEN_BATCH, jobs):
        if "code" in outcome:
            opened.append(_refusal(outcome))
            continue
        size, request, ticket = _reply(outcome, ok=int, request=bytes, ticket=bytes)
        opened.append(Opened(request, ticket, _blob(blobs, size)))
    return opened


def seal_batch_response(frame_id: int, outcomes: Sequence[bytes | MrgcError]) -> list[Buffer]:
    """Build the response of seal_batch, one outcome per result in order."""
    maps = [{"code": o.code} if isinstance(o, MrgcError) else {"ok": len(o)} for o in outcomes]
    return frames.encode(Op.SEAL_BATCH, frame_id, {"outcomes": maps}, [o for o in outcomes if isinstance(o, bytes)])


def parse_sealed(frame: Frame, results: int) -> list[memoryview | MrgcError]:
    """Return the outcomes of seal_batch for a request of `results` results, in order.

    Raises:
        MrgcError: the enclave answered the whole request with a code.
        EnclaveProtocolError: the response does not have one well-formed outcome per result.
    """
    blobs = iter(frame.blobs)
    return [
        _refusal(outcome) if "code" in outcome else _blob(blobs, _reply(outcome, ok=int)[0])
        for outcome in _outcomes(frame, Op.SEAL_BATCH, results)
    ]


def health_response(frame_id: int, health: Health) -> list[Buffer]:
    """Build the response of health."""
    fields = {name: int(value) if isinstance(value, bool) else value for name, value in health._asdict().items()}
    return frames.encode(Op.HEALTH, frame_id, {"status": "healthy", **fields})


def parse_health(frame: Frame) -> Health:
    """Parse the response of health. Raises MrgcError."""
    ensure_success(frame, Op.HEALTH)
    _ensure_bare(frame)
    _, boot, hello, attestation_ready, kms_ready, connections, uptime_s = _reply(
        frame.header,
        status=str,
        boot=str,
        hello=int,
        attestation_ready=int,
        kms_ready=int,
        connections=int,
        uptime_s=int,
    )
    return Health(boot, bool(hello), bool(attestation_ready), bool(kms_ready), connections, uptime_s)


def metrics_response(frame_id: int, counters: dict[str, int]) -> list[Buffer]:
    """Build the response of metrics: counters since boot, all uint."""
    return frames.encode(Op.METRICS, frame_id, {"counters": counters})


def parse_metrics(frame: Frame) -> dict[str, int]:
    """Parse the response of metrics. Raises MrgcError."""
    ensure_success(frame, Op.METRICS)
    _ensure_bare(frame)
    (counters,) = _reply(frame.header, counters=dict)
    if not all(type(value) is int for value in counters.values()):
        raise EnclaveProtocolError("metrics are not all integers")
    return dict(counters)


def ensure_success(frame: Frame, op: Op) -> None:
    """Raise the error that a response carries.

    Raises:
        MrgcError: the response's code, as the class of that code.
        EnclaveProtocolError: the response belongs to another op.
    """
    if "code" in frame.header:
        raise _refusal(frame.header)
    if frame.op != op:
        raise EnclaveProtocolError("response belongs to another operation")


# --- checks ----------------------------------------------------------------------------------------------------


def _fields(frame: Frame, **types: type) -> list[Any]:
    """Take the keys of a request without blobs."""
    _ensure(not frame.blobs, "a request without blobs")
    return _typed(frame.header, types)


def _typed(fields: object, types: dict[str, type]) -> list[Any]:
    if type(fields) is not dict or fields.keys() != types.keys():
        raise FormatError("request has a missing or an unknown key")
    values = []
    for name, kind in types.items():
        value = fields[name]
        if type(value) is not kind:
            raise FormatError("request has a key of another type")
        values.append(value)
    return values


def _reply(fields: dict[str, Any], **types: type) -> list[Any]:
    try:
        return _typed(fields, types)
    except FormatError as error:
        raise EnclaveProtocolError("response has a missing, unknown or mistyped key") from error


def _ensure_bare(frame: Frame) -> None:
    if frame.blobs:
        raise EnclaveProtocolError("response has blobs that its operation does not")


def _outcomes(frame: Frame, op: Op, count: int) -> list[dict[str, Any]]:
    ensure_success(frame, op)
    (outcomes,) = _reply(frame.header, outcomes=list)
    if len(outcomes) != count or not all(type(outcome) is dict for outcome in outcomes):
        raise EnclaveProtocolError("response does not have one outcome per job")
    if sum("ok" in outcome for outcome in outcomes) != len(frame.blobs):
        raise EnclaveProtocolError("response does not have one blob per success")
    return list(outcomes)


def _refusal(outcome: dict[str, Any]) -> MrgcError:
    code = outcome.get("code")
    if len(outcome) != 1 or type(code) is not str or not 1 <= len(code) <= 64:
        raise EnclaveProtocolError("response carries a malformed code")
    return from_code(code)


def _blob(blobs: Iterator[memoryview], size: int) -> memoryview:
    blob = next(blobs)
    if len(blob) != size:
        raise EnclaveProtocolError("response blob differs from its outcome's size")
    return blob


def _ensure(holds: object, what: str) -> None:
    if not holds:
        raise FormatError(f"request breaks the rules of {what}")
