"""The memory budget is arithmetic: what fits, what does not, and what is said then."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrgc.errors import ConfigError
from worker.models.budget import ensure_fits, resolve
from worker.models.device import total_bytes

NEEDS = st.dictionaries(st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True), st.integers(0, 1 << 40), max_size=20)


@given(NEEDS, st.integers(0, 1 << 44))
def test_models_fit_exactly_when_their_sum_does(needs: dict[str, int], budget_bytes: int) -> None:
    """Neither a model too many nor a byte too many gets by, and the missing bytes are told."""
    missing = sum(needs.values()) - budget_bytes
    if missing <= 0:
        ensure_fits(needs, budget_bytes=budget_bytes)
        return
    with pytest.raises(ConfigError) as caught:
        ensure_fits(needs, budget_bytes=budget_bytes)
    assert f" {missing} more than the {budget_bytes} of MRGC_MODEL_MEMORY_BYTES" in str(caught.value)
    assert max(needs, key=lambda name: needs[name]) in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_setting_of_zero_is_half_of_the_device() -> None:
    """The default leaves room for the forward pass on any device."""
    assert resolve(0, device_bytes=1001) == 500
    assert resolve(7, device_bytes=1000) == 7
    assert total_bytes(torch.device("cpu")) > 1 << 28
