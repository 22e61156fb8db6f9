from __future__ import annotations

import hashlib
import hmac
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave.tickets import LIFETIME_S, OPEN_PARENT, Opening, Tickets
from mrgc.errors import TicketError
from mrgc.wire.enclave_protocol import TICKET_BYTES

JOB: dict[str, Any] = {"request": b"r" * 32, "aad": b"mrgc header"}


def test_a_ticket_holds_for_900_seconds_and_no_longer() -> None:
    """A ticket is good until its deadline, 900 s after the opening."""
    tickets = Tickets()
    ticket = tickets.issue(OPEN_PARENT, **JOB, now_s=1_000.9)
    tickets.ensure_valid(ticket, OPEN_PARENT, **JOB, now_s=1_000 + LIFETIME_S - 0.1)
    with pytest.raises(TicketError):
        tickets.ensure_valid(ticket, OPEN_PARENT, **JOB, now_s=1_000 + LIFETIME_S)


def test_a_ticket_is_the_hmac_that_the_specification_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadline ‖ HMAC over label, deadline, tier, session, host, request and SHA-256 of the AAD."""
    monkeypatch.setattr("os.urandom", lambda count: b"k" * count)
    tickets = Tickets()
    opening = Opening(2, b"s" * 16, b"h" * 32)
    ticket = tickets.issue(opening, **JOB, now_s=5.0)
    deadline = (905).to_bytes(8, "big")
    hashes = JOB["request"] + hashlib.sha256(JOB["aad"]).digest()
    message = b"mrgc/1/ticket\x00" + deadline + b"\x02" + b"s" * 16 + b"h" * 32 + hashes
    assert ticket == deadline + hmac.digest(b"k" * 32, message, "sha256")
    assert len(ticket) == TICKET_BYTES


@pytest.mark.parametrize(
    ("opening", "job"),
    [
        (Opening(1, bytes(16), bytes(32)), JOB),
        (Opening(0, b"s" * 16, bytes(32)), JOB),
        (Opening(0, bytes(16), b"h" * 32), JOB),
        (OPEN_PARENT, JOB | {"request": b"q" * 32}),
        (OPEN_PARENT, JOB | {"aad": b"mrgc headeR"}),
    ],
)
def test_a_ticket_is_bound_to_everything_that_sealing_relies_on(opening: Opening, job: dict[str, Any]) -> None:
    """Statement 11: another tier, session, host, request or header makes the ticket worthless."""
    tickets = Tickets()
    ticket = tickets.issue(OPEN_PARENT, **JOB, now_s=1.0)
    with pytest.raises(TicketError):
        tickets.ensure_valid(ticket, opening, **job, now_s=1.0)


def test_a_ticket_of_another_boot_is_refused() -> None:
    """Every boot has a key of its own."""
    ticket = Tickets().issue(OPEN_PARENT, **JOB, now_s=1.0)
    with pytest.raises(TicketError):
        Tickets().ensure_valid(ticket, OPEN_PARENT, **JOB, now_s=1.0)


@given(st.integers(0, TICKET_BYTES * 8 - 1))
def test_no_flipped_bit_survives(bit: int) -> None:
    """A ticket with any bit flipped, its deadline included, is refused."""
    tickets = Tickets()
    ticket = bytearray(tickets.issue(OPEN_PARENT, **JOB, now_s=1.0))
    ticket[bit // 8] ^= 1 << bit % 8
    with pytest.raises(TicketError):
        tickets.ensure_valid(bytes(ticket), OPEN_PARENT, **JOB, now_s=1.0)
