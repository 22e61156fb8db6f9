"""Messages between intake and engine: what is built is parsed, and what is not well formed is refused."""

from __future__ import annotations

from typing import Any

import pytest

from mrgc.errors import AuthenticationError, EngineUnreachable, FormatError, KeyBusyError, MrgcError
from mrgc.wire import frames
from mrgc.wire.frames import Frame
from mrgc.wire.strict_cbor import Buffer
from worker import engine_protocol
from worker.engine_protocol import Health, ModelCard, Ready, Served


def received(buffers: list[Buffer]) -> Frame:
    """Decode what was built, as the other side does."""
    return frames.decode(b"".join(buffers)[frames.LENGTH_BYTES :])


def frame(op: str, header: dict[str, Any], *blobs: bytes) -> Frame:
    """Build any frame."""
    return received(frames.encode(op, 1, header, blobs))


READY = Ready({"tiny": ModelCard("ab" * 32, 64, 128)}, "0123456789abcdef", 1_000)


def test_ready_is_parsed_as_it_was_built() -> None:
    """The intake learns every model."""
    assert engine_protocol.parse_ready(received(engine_protocol.ready_message(READY))) == READY


def test_a_run_is_parsed_as_it_was_built() -> None:
    """Jobs are views, not copies, and keep their order."""
    request = engine_protocol.run_request(7, "tiny", [b"one", b"", b"three"], exclusive=True)
    run = engine_protocol.parse_run(received(request))
    assert (run.id, run.model, run.exclusive) == (7, "tiny", True)
    assert [bytes(job) for job in run.jobs] == [b"one", b"", b"three"]


def test_outcomes_are_parsed_as_they_were_built() -> None:
    """One bad job between two good ones keeps its place."""
    outcomes: list[Served | MrgcError] = [Served("ok", b"first"), AuthenticationError(), Served("partial", b"third")]
    parsed = engine_protocol.parse_outcomes(received(engine_protocol.run_response(7, outcomes)), 3)
    assert parsed[0] == Served("ok", b"first")
    assert isinstance(parsed[1], AuthenticationError)
    assert parsed[2] == Served("partial", b"third")


def test_health_is_parsed_as_it_was_built() -> None:
    """Counters travel with it."""
    health = Health("waiting", "enclave waits for its agent", {"jobs": 3})
    assert engine_protocol.parse_health(received(engine_protocol.health_response(2, health))) == health


@pytest.mark.parametrize(
    "request_frame",
    [
        frame("run", {"model": "tiny", "exclusive": 0}),
        frame("run", {"model": "tiny", "exclusive": 0}, *[b"x"] * 1_025),
        frame("run", {"model": "TINY", "exclusive": 0}, b"x"),
        frame("run", {"model": 1, "exclusive": 0}, b"x"),
        frame("run", {"model": "tiny"}, b"x"),
        frame("run", {"model": "tiny", "exclusive": 2}, b"x"),
        frame("run", {"model": "tiny", "exclusive": "1"}, b"x"),
        frame("run", {"model": "tiny", "exclusive": 0, "more": 1}, b"x"),
        frame("stop", {"model": "tiny", "exclusive": 0}, b"x"),
    ],
)
def test_a_malformed_run_is_refused(request_frame: Frame) -> None:
    """The engine answers with a code and drops the connection."""
    with pytest.raises(FormatError):
        engine_protocol.parse_run(request_frame)


CARD = {"digest": "ab", "dimensions": 1, "max_tokens": 1}


@pytest.mark.parametrize(
    "answer",
    [
        frame("ready", {"models": {}, "boot": ""}),
        frame("ready", {"models": [], "boot": "", "max_result_bytes": 1}),
        frame("ready", {"models": {"a": {}}, "boot": "", "max_result_bytes": 1}),
        frame("ready", {"models": {"a": 1}, "boot": "", "max_result_bytes": 1}),
        frame("ready", {"models": {"a": CARD | {"digest": 1}}, "boot": "", "max_result_bytes": 1}),
        frame("ready", {"models": {"a": CARD | {"dimensions": "1"}}, "boot": "", "max_result_bytes": 1}),
        frame("run", {"models": {"a": CARD}, "boot": "", "max_result_bytes": 1}),
        frame("ready", {"code": "busy"}),
    ],
)
def test_a_malformed_ready_is_a_broken_engine(answer: Frame) -> None:
    """The intake drops the connection and tries again; no job was in it."""
    with pytest.raises(EngineUnreachable):
        engine_protocol.parse_ready(answer)


OK = {"ok": 1, "status": "ok"}


@pytest.mark.parametrize(
    "answer",
    [
        frame("run", {"outcomes": []}),
        frame("run", {"outcomes": [OK, OK]}, b"x", b"y"),
        frame("run", {"outcomes": [OK]}),
        frame("run", {"outcomes": [OK]}, b"xy"),
        frame("run", {"outcomes": [OK]}, b"x", b"y"),
        frame("run", {"outcomes": [{"code": "auth"}]}, b"x"),
        frame("run", {"outcomes": [{"ok": 1}]}, b"x"),
        frame("run", {"outcomes": [{"ok": 1, "status": "fine"}]}, b"x"),
        frame("run", {"outcomes": [{"code": 1}]}),
        frame("run", {"outcomes": [{"code": "auth", "ok": 0}]}, b""),
        frame("run", {"outcomes": ["auth"]}),
        frame("run", {"outcomes": [OK], "more": 1}, b"x"),
        frame("health", {"outcomes": [OK]}, b"x"),
        frame("run", {"code": "bad_format"}),
    ],
)
def test_malformed_outcomes_are_a_broken_engine(answer: Frame) -> None:
    """A result is never matched to a job on a guess."""
    with pytest.raises(EngineUnreachable):
        engine_protocol.parse_outcomes(answer, 1)


@pytest.mark.parametrize(
    "answer",
    [
        frame("health", {"status": "fine", "reason": "", "counters": {}}),
        frame("health", {"status": "healthy", "reason": "", "counters": {"jobs": "3"}}),
        frame("health", {"status": "healthy", "reason": ""}),
        frame("ready", {"status": "healthy", "reason": "", "counters": {}}),
    ],
)
def test_a_malformed_health_is_a_broken_engine(answer: Frame) -> None:
    """An engine that cannot say how it is, is not healthy."""
    with pytest.raises(EngineUnreachable):
        engine_protocol.parse_health(answer)


def test_a_code_of_an_outcome_becomes_its_error() -> None:
    """The intake applies the action of the class."""
    (outcome,) = engine_protocol.parse_outcomes(frame("run", {"outcomes": [{"code": "key_busy"}]}), 1)
    assert isinstance(outcome, KeyBusyError)
