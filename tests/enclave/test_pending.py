from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from enclave import pending
from enclave.pending import LIFETIME_S, MAX_PER_TENANT, MAX_REQUESTS, OpenedJob, OpenedPayload, PendingRequests
from mrgc.errors import DuplicateRequest, EnclaveBusy, FormatError, UnknownRequest

PAYLOAD = OpenedPayload("arn", "acme")
JOB = OpenedJob("arn", bytes(32), bytes(40), b"aad")


def opened(requests: PendingRequests, request_id: str, *, tenant: str = "acme", now_s: float = 0.0) -> None:
    """Do what a decrypt does to the table."""
    requests.reserve(request_id, tenant, now_s=now_s)
    requests.fill(request_id, OpenedPayload("arn", tenant))


@pytest.mark.parametrize("origin", [PAYLOAD, JOB])
def test_an_encrypt_takes_what_its_decrypt_left_once(origin: OpenedPayload | OpenedJob) -> None:
    """What was decrypted under an id comes back to the first encrypt of that id, and to no second one."""
    requests = PendingRequests()
    requests.reserve("r", "acme", now_s=0)
    requests.fill("r", origin)
    assert requests.take("r", "arn", now_s=1) is origin
    with pytest.raises(UnknownRequest):
        requests.take("r", "arn", now_s=1)
    assert len(requests) == 0


def test_an_id_is_a_duplicate_from_its_reservation_to_its_end() -> None:
    """Neither a decrypt under way nor an answered one shares its id; a released or consumed id is free again."""
    requests = PendingRequests()
    requests.reserve("r", "acme", now_s=0)
    with pytest.raises(DuplicateRequest):
        requests.reserve("r", "globex", now_s=1)
    requests.fill("r", PAYLOAD)
    with pytest.raises(DuplicateRequest):
        requests.reserve("r", "globex", now_s=1)
    requests.take("r", "arn", now_s=1)
    requests.reserve("r", "acme", now_s=1)
    requests.release("r")
    requests.reserve("r", "acme", now_s=1)


def test_an_id_without_a_decrypt_is_unknown() -> None:
    """Never seen, and still under way, are the same: nothing was decrypted."""
    requests = PendingRequests()
    with pytest.raises(UnknownRequest):
        requests.take("r", "arn", now_s=0)
    requests.reserve("r", "acme", now_s=0)
    with pytest.raises(UnknownRequest):
        requests.take("r", "arn", now_s=0)


def test_another_key_consumes_nothing() -> None:
    """An encrypt that names another key is refused, and the right one is served after it."""
    requests = PendingRequests()
    opened(requests, "r")
    with pytest.raises(FormatError):
        requests.take("r", "other", now_s=0)
    assert requests.take("r", "arn", now_s=0) == PAYLOAD


def test_a_request_dies_after_its_life() -> None:
    """At 900 s it is unknown, its id is free and its place in the quota too; just before it is not."""
    requests = PendingRequests()
    opened(requests, "early")
    opened(requests, "late", now_s=1)
    with pytest.raises(DuplicateRequest):
        requests.reserve("early", "acme", now_s=LIFETIME_S - 0.001)
    with pytest.raises(UnknownRequest):
        requests.take("early", "arn", now_s=LIFETIME_S)
    assert requests.take("late", "arn", now_s=LIFETIME_S) == PAYLOAD
    opened(requests, "early", now_s=LIFETIME_S)


def test_a_tenant_at_its_bound_keeps_nobody_else_out() -> None:
    """512 requests of one tenant are its last; another tenant's first is served."""
    requests = PendingRequests()
    for number in range(MAX_PER_TENANT):
        opened(requests, str(number))
    with pytest.raises(EnclaveBusy):
        requests.reserve("one more", "acme", now_s=0)
    opened(requests, "of another", tenant="globex")
    requests.take("0", "arn", now_s=0)
    opened(requests, "one more")


def test_all_tenants_together_have_a_bound() -> None:
    """4,096 requests are all; with the first one's death there is room again."""
    requests = PendingRequests()
    for number in range(MAX_REQUESTS):
        opened(requests, str(number), tenant=f"tenant-{number % 16}", now_s=number / MAX_REQUESTS)
    with pytest.raises(EnclaveBusy):
        requests.reserve("one more", "newcomer", now_s=1)
    requests.reserve("one more", "newcomer", now_s=LIFETIME_S)


class Model(RuleBasedStateMachine):
    """The table beside a dictionary that is searched, not kept in order."""

    def __init__(self) -> None:
        super().__init__()
        self.table = PendingRequests()
        self.now_s = 0.0
        self.model: dict[str, tuple[str, float, bool]] = {}

    def alive(self) -> dict[str, tuple[str, float, bool]]:
        """Return what must be in the table now."""
        return {name: entry for name, entry in self.model.items() if self.now_s < entry[1]}

    @rule(request_id=st.sampled_from("abcdef"), tenant=st.sampled_from(["acme", "globex"]))
    def decrypt(self, request_id: str, tenant: str) -> None:
        """Reserve an id, or be told why not."""
        self.model = self.alive()
        of_tenant = sum(entry[0] == tenant for entry in self.model.values())
        expected = (
            DuplicateRequest
            if request_id in self.model
            else EnclaveBusy
            if len(self.model) >= pending.MAX_REQUESTS or of_tenant >= pending.MAX_PER_TENANT
            else None
        )
        if expected is not None:
            with pytest.raises(expected):
                self.table.reserve(request_id, tenant, now_s=self.now_s)
            return
        self.table.reserve(request_id, tenant, now_s=self.now_s)
        self.model[request_id] = (tenant, self.now_s + LIFETIME_S, False)

    @precondition(lambda self: any(not entry[2] for entry in self.alive().values()))
    @rule(data=st.data(), succeeds=st.booleans())
    def answer(self, data: st.DataObject, succeeds: bool) -> None:
        """End a decrypt that is under way."""
        under_way = [name for name, entry in self.alive().items() if not entry[2]]
        request_id = data.draw(st.sampled_from(under_way))
        tenant, until_s, _ = self.model[request_id]
        if succeeds:
            self.table.fill(request_id, OpenedPayload("arn", tenant))
            self.model[request_id] = (tenant, until_s, True)
        else:
            self.table.release(request_id)
            del self.model[request_id]

    @rule(request_id=st.sampled_from("abcdef"))
    def encrypt(self, request_id: str) -> None:
        """Consume an id, or be told that nothing waits for it."""
        self.model = self.alive()
        if request_id in self.model and self.model[request_id][2]:
            tenant, _, _ = self.model.pop(request_id)
            assert self.table.take(request_id, "arn", now_s=self.now_s) == OpenedPayload("arn", tenant)
            return
        with pytest.raises(UnknownRequest):
            self.table.take(request_id, "arn", now_s=self.now_s)

    # Shorter than a life by far: an answer never meets an expired reservation, as KMS answers within seconds.
    @precondition(lambda self: all(entry[2] for entry in self.alive().values()))
    @rule(seconds=st.floats(0, 500))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds

    @invariant()
    def the_bounds_hold(self) -> None:
        """Never more than the bound, and never less than what must be alive."""
        assert len(self.alive()) <= len(self.table) <= pending.MAX_REQUESTS


def test_the_table_agrees_with_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under any order of decrypts, answers, encrypts and waits the table says what the model says."""
    monkeypatch.setattr(pending, "MAX_REQUESTS", 4)
    monkeypatch.setattr(pending, "MAX_PER_TENANT", 3)
    run_state_machine_as_test(Model)
