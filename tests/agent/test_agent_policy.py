from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrgc.wire.enclave_protocol import Health
from worker.agent_policy import Step, View, next_step

LOCKED = Health("b" * 16, hello=True, attestation_ready=True, kms_ready=True, connections=1, uptime_s=1)
FRESH = LOCKED._replace(hello=False)
SERVING = View(LOCKED, has_token=True, said_hello=True, was_refused=False, credentials_age_s=1.0, resend_s=150.0)


@pytest.mark.parametrize(
    ("view", "step"),
    [
        (SERVING, Step.WATCH),
        (replace(SERVING, credentials_age_s=None), Step.SEND_CREDENTIALS),
        (replace(SERVING, credentials_age_s=150.0), Step.SEND_CREDENTIALS),
        (replace(SERVING, credentials_age_s=149.9), Step.WATCH),
        (replace(SERVING, said_hello=False), Step.HELLO),
        (replace(SERVING, said_hello=False, has_token=False), Step.LOCKED_OUT),
        (replace(SERVING, said_hello=False, was_refused=True), Step.LOCKED_OUT),
        (replace(SERVING, health=FRESH), Step.NEW_TOKEN),
        (replace(SERVING, health=FRESH, said_hello=False, has_token=False), Step.NEW_TOKEN),
        (replace(SERVING, health=FRESH, said_hello=False, was_refused=True), Step.NEW_TOKEN),
    ],
)
def test_the_next_step_is_the_first_thing_that_is_missing(view: View, step: Step) -> None:
    """A new boot gets a token, a known one a hello, then credentials when due, then it is watched."""
    assert next_step(view) is step


@given(st.builds(View, st.sampled_from([LOCKED, FRESH]), *[st.booleans()] * 3, st.none() | st.floats(0, 1e6),
                 st.floats(1, 1e4)))  # fmt: skip
def test_a_token_is_made_for_a_fresh_boot_only(view: View) -> None:
    """Whatever else is true, the token of a locked enclave is never replaced: engines are using it."""
    assert (next_step(view) is Step.NEW_TOKEN) == (not view.health.hello)
    if next_step(view) is Step.SEND_CREDENTIALS:
        assert view.said_hello
