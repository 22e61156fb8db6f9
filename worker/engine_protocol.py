"""Messages of the engine socket: what the intake and an engine say to each other, typed on both sides.

Frames are those of docs/spec.md §6 on a unix socket between two users of one host. Sealed bytes only: a plaintext
byte, a data key or the enclave token has no message here.

- engine → intake, right after accept: `ready` (models, boot of the enclave, cap of a result body)
- intake → engine: `run` (id; model, exclusive; blobs = sealed jobs), several in flight, answered in any order
- engine → intake: `run` (id; outcomes in the order of the jobs; blobs = sealed results of the ok ones)
- either: `health` (id) and its answer. A connection whose `run` waits for room reads no further message, so ask
  for health on a connection of its own.

May import: the standard library, mrgc.errors, mrgc.wire. Called by worker.engine_link and worker.engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from mrgc.errors import EngineUnreachable, FormatError, MrgcError, from_code
from mrgc.wire import frames
from mrgc.wire.frames import Frame
from mrgc.wire.headers import MODEL, STATUSES
from mrgc.wire.strict_cbor import Buffer

MAX_JOBS: Final = 1_024  #: Jobs of one run; docs/spec.md §6 allows no more in the open_batch that follows.

READY: Final = "ready"
RUN: Final = "run"
HEALTH: Final = "health"

HEALTHY: Final = "healthy"
WAITING: Final = "waiting"


class ModelCard(NamedTuple):
    """What the intake needs to know of a model that an engine serves."""

    #: SHA-256 of the manifest file's bytes, hex.
    digest: str
    #: Width of one embedding; items × dimensions × 4 bounds a result from below (docs/spec.md §3).
    dimensions: int
    max_tokens: int


class Ready(NamedTuple):
    """First message of a connection: every model is loaded and warm."""

    models: dict[str, ModelCard]
    #: Boot id of the enclave that the engine is connected to; empty while there is none.
    boot: str
    max_result_bytes: int


class Run(NamedTuple):
    """One job batch: sealed jobs of one model."""

    id: int
    model: str
    #: Whether no two tenants' texts may go through one forward pass.
    exclusive: bool
    jobs: list[memoryview]


class Served(NamedTuple):
    """A sealed result and the status that its header carries."""

    status: str
    result: Buffer


class Health(NamedTuple):
    """Whether an engine can serve now, why not, and its counters since start."""

    status: str
    reason: str
    counters: dict[str, int]


# --- engine → intake at accept -----------------------------------------------------------------------------------


def ready_message(ready: Ready) -> list[Buffer]:
    """Build the message that an engine sends right after accept."""
    models = {name: card._asdict() for name, card in ready.models.items()}
    fields = {"models": models, "boot": ready.boot, "max_result_bytes": ready.max_result_bytes}
    return frames.encode(READY, 0, fields)


def parse_ready(frame: Frame) -> Ready:
    """Parse the first message of an engine.

    Raises:
        EngineUnreachable: it is not a well-formed ready message; drop the connection.
    """
    models, boot, max_result_bytes = _reply(frame, READY, models=dict, boot=str, max_result_bytes=int)
    return Ready({name: _card(fields) for name, fields in models.items()}, boot, max_result_bytes)


# --- run ---------------------------------------------------------------------------------------------------------


def run_request(run_id: int, model: str, jobs: Sequence[Buffer], *, exclusive: bool = False) -> list[Buffer]:
    """Build a request to serve sealed jobs, at most 1,024, all of one model."""
    return frames.encode(RUN, run_id, {"model": model, "exclusive": int(exclusive)}, jobs)


def parse_run(frame: Frame) -> Run:
    """Parse a request to serve jobs.

    Raises:
        FormatError: a key is missing, unknown or mistyped, or the number of jobs is outside 1..1,024.
    """
    if frame.op != RUN or frame.header.keys() != {"model", "exclusive"} or not 1 <= len(frame.blobs) <= MAX_JOBS:
        raise FormatError("not a well-formed run request")
    model, exclusive = frame.header["model"], frame.header["exclusive"]
    if type(model) is not str or MODEL.fullmatch(model) is None:
        raise FormatError("run request names no model")
    if exclusive not in (0, 1):
        raise FormatError("run request does not say whether it is exclusive")
    return Run(frame.id, model, bool(exclusive), frame.blobs)


def run_response(run_id: int, outcomes: Sequence[Served | MrgcError]) -> list[Buffer]:
    """Build the answer to a run: one outcome per job, in order.

    An answer over a frame's limit cannot be sent whole, so the caller keeps job batches small enough
    (docs/spec.md §6); the intake's own cap on a batch does.
    """
    maps = [
        {"code": o.code} if isinstance(o, MrgcError) else {"ok": len(o.result), "status": o.status} for o in outcomes
    ]
    return frames.encode(RUN, run_id, {"outcomes": maps}, [o.result for o in outcomes if isinstance(o, Served)])


def parse_outcomes(frame: Frame, jobs: int) -> list[Served | MrgcError]:
    """Return the outcomes of a run of `jobs` jobs, in order; results are views into the frame.

    Raises:
        EngineUnreachable: the answer does not have one well-formed outcome per job; drop the connection.
    """
    (outcomes,) = _reply(frame, RUN, outcomes=list)
    if len(outcomes) != jobs:
        raise EngineUnreachable("engine did not answer with one outcome per job")
    blobs = iter(frame.blobs)
    parsed = [_outcome(outcome, next(blobs, None)) if _is_ok(outcome) else _refusal(outcome) for outcome in outcomes]
    if next(blobs, None) is not None:
        raise EngineUnreachable("engine answered with more results than outcomes")
    return parsed


# --- health ------------------------------------------------------------------------------------------------------


def health_request(frame_id: int) -> list[Buffer]:
    """Build a request for health."""
    return frames.encode(HEALTH, frame_id, {})


def health_response(frame_id: int, health: Health) -> list[Buffer]:
    """Build the answer to a request for health."""
    return frames.encode(HEALTH, frame_id, health._asdict())


def parse_health(frame: Frame) -> Health:
    """Parse the answer to a request for health.

    Raises:
        EngineUnreachable: it is not well formed; drop the connection.
    """
    status, reason, counters = _reply(frame, HEALTH, status=str, reason=str, counters=dict)
    if status not in (HEALTHY, WAITING) or not all(type(value) is int for value in counters.values()):
        raise EngineUnreachable("engine answered with a malformed health")
    return Health(status, reason, dict(counters))


def error_response(op: str, frame_id: int, error: MrgcError) -> list[Buffer]:
    """Build an answer that carries nothing but the error's code; the connection is dropped after it."""
    return frames.encode(op, frame_id, {"code": error.code})


# --- checks ------------------------------------------------------------------------------------------------------


def _reply(frame: Frame, op: str, **types: type) -> list[Any]:
    if "code" in frame.header:
        raise EngineUnreachable("engine refused the request")
    if frame.op != op or frame.header.keys() != types.keys():
        raise EngineUnreachable("engine answered with a missing or an unknown key")
    if frame.blobs and op != RUN:
        raise EngineUnreachable("engine answered with blobs that are no results")
    values = [frame.header[name] for name in types]
    if any(type(value) is not kind for value, kind in zip(values, types.values(), strict=True)):
        raise EngineUnreachable("engine answered with a mistyped key")
    return values


def _card(fields: Mapping[str, Any]) -> ModelCard:
    if type(fields) is not dict or fields.keys() != set(ModelCard._fields):
        raise EngineUnreachable("engine described a model with a missing or an unknown key")
    card = ModelCard(**fields)
    if type(card.digest) is not str or type(card.dimensions) is not int or type(card.max_tokens) is not int:
        raise EngineUnreachable("engine described a model with a mistyped key")
    return card


def _is_ok(outcome: object) -> bool:
    return type(outcome) is dict and outcome.keys() == {"ok", "status"}


def _outcome(outcome: dict[str, Any], blob: memoryview | None) -> Served:
    if blob is None or outcome["ok"] != len(blob) or outcome["status"] not in STATUSES:
        raise EngineUnreachable("engine answered with a result that differs from its outcome")
    return Served(outcome["status"], blob)


def _refusal(outcome: object) -> MrgcError:
    if type(outcome) is not dict or outcome.keys() != {"code"} or type(outcome["code"]) is not str:
        raise EngineUnreachable("engine answered with a malformed outcome")
    return from_code(outcome["code"])
