from __future__ import annotations

import pytest

from enclave import kms_budget
from enclave.kms_budget import BURST_CALLS, CALLS_PER_S, LANES, MAX_LINE, KmsBudget


def test_a_tenant_spends_its_burst_and_then_its_rate() -> None:
    """After a burst, calls come at the rate and no faster; another tenant is not touched."""
    budget: KmsBudget[str] = KmsBudget()
    assert sum(budget.admit("acme", 0.0) for _ in range(1_000)) == BURST_CALLS
    assert sum(budget.admit("acme", 1.0) for _ in range(1_000)) == CALLS_PER_S
    assert budget.admit("globex", 1.0)


def test_a_tenant_has_few_lanes_and_a_line_of_its_own() -> None:
    """Calls beyond the lanes wait in order, and start when a call of the same tenant ends."""
    budget: KmsBudget[str] = KmsBudget()
    calls = [str(number) for number in range(LANES + 2)]
    assert all(budget.admit("acme", 0.0) for _ in calls)
    assert [budget.begin("acme", call) for call in calls] == [True] * LANES + [False, False]
    assert [budget.end("acme") for _ in calls] == [calls[LANES], calls[LANES + 1], *[None] * LANES]
    assert budget.admit("acme", 0.0)
    assert budget.begin("acme", "next")


def test_tenants_are_remembered_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invented tenant names take bounded memory: the idle are forgotten, and until then newcomers are refused."""
    monkeypatch.setattr(kms_budget, "MAX_TENANTS", 3)
    budget: KmsBudget[str] = KmsBudget()
    assert [budget.admit(name, 0.0) for name in "abcd"] == [True, True, True, False]
    assert budget.begin("a", "call")
    assert budget.admit("d", 60.0)
    assert set(budget._tenants) == {"a", "d"}


def calls_begun(budget: KmsBudget[str], tenant: str, *, until_s: int) -> int:
    """Make every call that a tenant may make, while none of them ends."""
    begun = 0
    for now_s in range(until_s):
        while budget.admit(tenant, float(now_s)):
            budget.begin(tenant, "call")
            begun += 1
    return begun


def test_a_line_does_not_grow_while_kms_is_silent() -> None:
    """Statement 9: ten minutes without an answer leave a tenant its lanes and one line, which passes when calls end."""
    budget: KmsBudget[str] = KmsBudget()
    assert calls_begun(budget, "acme", until_s=600) == LANES + MAX_LINE
    assert budget.end("acme") == "call"
    assert budget.admit("acme", 600.0)
    assert not budget.begin("acme", "next")
    assert not budget.admit("acme", 600.0)


def test_full_lines_of_others_leave_a_tenant_its_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statement 9: lines are bounded over all tenants; whoever has a free lane waits in none, so is not refused."""
    monkeypatch.setattr(kms_budget, "MAX_WAITING", 300)
    budget: KmsBudget[str] = KmsBudget()
    assert [calls_begun(budget, name, until_s=60) for name in ("acme", "globex", "initech")] == [
        LANES + MAX_LINE,
        LANES + 300 - MAX_LINE,
        LANES,
    ]
    assert budget.end("acme") == "call"
    assert calls_begun(budget, "initech", until_s=61) == 1
