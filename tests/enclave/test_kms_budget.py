from __future__ import annotations

import pytest

from enclave import kms_budget
from enclave.kms_budget import BURST_CALLS, CALLS_PER_S, LANES, KmsBudget


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
