"""Requests and responses of the enclave socket, both ways, and their refusals."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mrgc.errors import AuthenticationError, EnclaveProtocolError, FormatError, KeyBusyError, MrgcError
from mrgc.wire import enclave_protocol as protocol
from mrgc.wire import frames
from mrgc.wire.enclave_protocol import Credentials, Health, Hello, Op, Opened, SealRequest, Use
from mrgc.wire.frames import Frame
from mrgc.wire.strict_cbor import Buffer

REQUEST, TICKET = b"r" * 32, b"t" * 40


def over_the_wire(buffers: Sequence[Buffer]) -> Frame:
    """Encode to bytes and decode again."""
    return frames.decode(b"".join(buffers)[4:])


def test_every_request_comes_back_from_its_parser_as_it_was() -> None:
    """Builders and parsers of requests are inverse."""
    hello = Hello(b"k" * 32, json=True)
    credentials = Credentials("AKIA", "secret", "token", 1_795_000_000)
    attest = protocol.AttestRequest(b"n" * 16, Use.IDENTITY)
    seal = SealRequest(REQUEST, TICKET, "ok", "m@sha256:" + "0" * 64, "application/json", b"aad", b"body")
    assert protocol.parse_hello(over_the_wire(protocol.hello_request(1, hello))) == hello
    assert protocol.parse_credentials(over_the_wire(protocol.credentials_request(2, credentials))) == credentials
    assert protocol.parse_attest(over_the_wire(protocol.attest_request(3, attest))) == attest
    assert protocol.parse_open_batch(over_the_wire(protocol.open_batch_request(4, [b"a", b"bc"]))) == [b"a", b"bc"]
    assert protocol.parse_seal_batch(over_the_wire(protocol.seal_batch_request(5, [seal, seal]))) == [seal, seal]


def test_outcomes_keep_their_order_and_each_job_its_own() -> None:
    """A refused job between two opened ones leaves their blobs where they belong."""
    outcomes: list[Opened | MrgcError] = [
        Opened(REQUEST, TICKET, b"one"),
        AuthenticationError(),
        Opened(REQUEST, TICKET, b""),
    ]
    parsed = protocol.parse_opened(over_the_wire(protocol.open_batch_response(1, outcomes)), 3)
    assert [getattr(outcome, "plaintext", None) for outcome in parsed] == [b"one", None, b""]
    assert isinstance(parsed[1], AuthenticationError)
    sealed = protocol.parse_sealed(over_the_wire(protocol.seal_batch_response(1, [b"x", KeyBusyError("kms")])), 2)
    assert isinstance(sealed[0], memoryview)
    assert sealed[0].tobytes() == b"x"
    assert isinstance(sealed[1], KeyBusyError)


def test_health_and_metrics_survive_the_wire() -> None:
    """Flags cross as 0 and 1, since the subset has no booleans outside payloads."""
    health = Health("0123456789abcdef", hello=True, attestation_ready=True, kms_ready=False, connections=3, uptime_s=9)
    assert protocol.parse_health(over_the_wire(protocol.health_response(1, health))) == health
    assert protocol.parse_metrics(over_the_wire(protocol.metrics_response(2, {"kms_calls": 1}))) == {"kms_calls": 1}


def test_secrets_have_no_repr() -> None:
    """Token, credentials and plaintext stay out of every representation."""
    shown = repr(
        (Hello(b"k" * 32, json=False), Credentials("AKIA", "secret", "tok", 0), Opened(REQUEST, TICKET, b"plain"))
    )
    assert not any(secret in shown for secret in ("kkk", "AKIA", "secret", "tok=", "plain'"))


def test_an_error_response_raises_the_error_of_its_code() -> None:
    """A response that carries a code is that error, on whichever op."""
    frame = over_the_wire(protocol.error_response(Op.OPEN_BATCH, 1, KeyBusyError("throttled by kms")))
    assert frame.header == {"code": "key_busy"}
    with pytest.raises(KeyBusyError):
        protocol.parse_opened(frame, 1)


@pytest.mark.parametrize(
    "header",
    [{}, {"token": b"k" * 31, "json": 0}, {"token": b"k" * 32, "json": 2}, {"token": b"k" * 32, "json": 0, "x": 1}],
    ids=["missing", "short", "json 2", "unknown key"],
)
def test_a_request_off_its_form_is_refused(header: dict[str, object]) -> None:
    """Missing, mistyped and unknown keys are FormatErrors."""
    with pytest.raises(FormatError):
        protocol.parse_hello(Frame("hello", 1, header, []))


@pytest.mark.parametrize(
    ("header", "blobs"),
    [
        ({"outcomes": []}, []),
        ({"outcomes": [{"ok": 1, "request": REQUEST, "ticket": TICKET}]}, []),
        ({"outcomes": [{"ok": 2, "request": REQUEST, "ticket": TICKET}]}, [b"x"]),
        ({"outcomes": [{"code": "auth", "why": "because"}]}, []),
        ({"outcomes": [{"code": "auth", "ok": 1}]}, [b"x"]),
        ({"outcomes": [{"code": ""}]}, []),
        ({"outcomes": ["auth"]}, []),
        ({"outcomes": [{"ok": 0}]}, [b""]),
    ],
    ids=range(8),
)
def test_a_response_off_its_form_is_a_protocol_error(header: dict[str, object], blobs: list[bytes]) -> None:
    """A peer that does not answer one well-formed outcome per job is dropped, not guessed at."""
    with pytest.raises(EnclaveProtocolError):
        protocol.parse_opened(Frame("open_batch", 1, header, [memoryview(blob) for blob in blobs]), 1)
