"""Messages of the engine socket: what is accepted builds the received bytes again."""

from __future__ import annotations

from collections.abc import Callable

from fuzz.target import Target
from fuzz.targets import enclave_protocol
from mrgc.errors import BY_CODE, EngineUnreachable, FormatError, MrgcError, PoisonError
from mrgc.wire import frames
from mrgc.wire.frames import Frame
from mrgc.wire.strict_cbor import Buffer
from worker import engine_protocol as protocol

_JOBS = 2
_Built = list[Buffer]

#: Parse a message and build it again.
_MESSAGES: tuple[Callable[[Frame], _Built], ...] = (
    lambda f: protocol.ready_message(protocol.parse_ready(f)),
    lambda f: _rebuilt(protocol.parse_run(f)),
    lambda f: protocol.run_response(f.id, protocol.parse_outcomes(f, _JOBS)),
    lambda f: protocol.health_response(f.id, protocol.parse_health(f)),
)


def _rebuilt(run: protocol.Run) -> _Built:
    return protocol.run_request(run.id, run.model, run.jobs, exclusive=run.exclusive)


def check(data: bytes) -> bool:
    """Parse one frame body as every message that it could be."""
    try:
        frame = frames.decode(data)
    except FormatError:
        return False
    accepted = [_is_message(round_trip, frame, data) for round_trip in _MESSAGES]
    return any(accepted)


def _is_message(round_trip: Callable[[Frame], _Built], frame: Frame, data: bytes) -> bool:
    try:
        built = round_trip(frame)
    except (FormatError, EngineUnreachable):
        return False
    # Not canonical: the id of `ready` means nothing, and an unknown code is read as another one.
    if frame.op != protocol.READY and all(code in BY_CODE for code in _codes(frame)):
        assert b"".join(built)[frames.LENGTH_BYTES :] == data
    return True


def _codes(frame: Frame) -> list[str]:
    return [outcome["code"] for outcome in frame.header.get("outcomes", ()) if "code" in outcome]


def seeds() -> dict[str, bytes]:
    """Every message of the protocol."""
    card = protocol.ModelCard("0" * 64, 384, 256)
    served: list[protocol.Served | MrgcError] = [protocol.Served("partial", b"result"), PoisonError()]
    messages = {
        "ready": protocol.ready_message(protocol.Ready({"all-minilm-l6-v2": card}, "00" * 8, 1 << 20)),
        "run": protocol.run_request(1, "all-minilm-l6-v2", [b"job", b"another"]),
        "outcomes": protocol.run_response(1, served),
        "health": protocol.health_request(2),
        "healthy": protocol.health_response(2, protocol.Health("healthy", "", {"jobs": 3})),
        "unknown-status": frames.encode("run", 1, {"outcomes": [{"ok": 1, "status": "new"}, {"code": "auth"}]}, [b"x"]),
    }
    return {name: b"".join(message)[frames.LENGTH_BYTES :] for name, message in messages.items()}


TARGET = Target(check, seeds, enclave_protocol.mutate)
