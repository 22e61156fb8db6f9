from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from enclave import data_keys, kms_budget
from enclave.counters import Counters
from enclave.data_keys import DataKeys, KeyWish, Unwrap
from enclave.key_cache import WrappedKey
from enclave.kms_budget import BURST_CALLS, LANES
from enclave.kms_calls import KmsCalls
from mrgc.errors import AuthenticationError, KeyAccessError, KeyBusyError, MrgcError
from tests.waiting import until

KEY = bytes(range(32))


def wish(number: int = 0, tenant: str = "acme", uses: int = 1) -> KeyWish:
    """Ask for one of many keys."""
    return KeyWish(WrappedKey(tenant, "arn", number.to_bytes(4, "big"), (("mrgc:tenant", tenant),)), uses)


@contextmanager
def keys_of(unwrap: Unwrap) -> Iterator[DataKeys]:
    """Run a key store over `unwrap`, and check at its end that it holds nothing."""
    calls = KmsCalls(Counters())
    keys = DataKeys(unwrap, calls, Counters())
    try:
        yield keys
    finally:
        calls.close()
        keys.close()
        assert keys.entries() == 0


class Gate:
    """An unwrap that counts its calls and answers when told to."""

    def __init__(self, outcome: bytes | MrgcError = KEY) -> None:
        self.calls: list[WrappedKey] = []
        self.opened = threading.Event()
        self.outcome = outcome

    def __call__(self, wrapped: WrappedKey) -> bytearray:
        self.calls.append(wrapped)
        assert self.opened.wait(20)
        if isinstance(self.outcome, MrgcError):
            raise self.outcome
        return bytearray(self.outcome)


def in_threads(count: int, act: Callable[[], object]) -> list[threading.Thread]:
    """Start `count` threads of the same act."""
    threads = [threading.Thread(target=act) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def join(threads: list[threading.Thread]) -> None:
    """Wait for threads."""
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize("outcome", [KEY, AuthenticationError(), KeyAccessError("no"), KeyBusyError("later")])
def test_threads_that_want_one_key_share_one_call(outcome: bytes | MrgcError) -> None:
    """Single flight: however many batches want a key at once, KMS is asked once and all get its answer."""
    gate = Gate(outcome)
    found: list[object] = []
    with keys_of(gate) as keys:
        threads = in_threads(30, lambda: found.extend(keys.obtain([wish(uses=2)])))
        until(lambda: sum(len(f.seats) for f in keys._flights.values()) == 30, within_s=10, what="all to wait")
        gate.opened.set()
        join(threads)
    assert len(gate.calls) == 1
    assert [bytes(f) if isinstance(f, bytearray) else f for f in found] == [outcome] * 30
    assert len({id(f) for f in found if isinstance(f, bytearray)}) == (30 if outcome == KEY else 0)


def test_a_key_is_cached_with_all_the_uses_of_its_flight() -> None:
    """What a flight handed out counts against the key's uses."""
    with keys_of(lambda _: bytearray(KEY)) as keys:
        keys.obtain([wish(uses=5)])
        keys.obtain([wish(uses=7)])
        (entry,) = keys._cache._tenants["acme"].values()
        assert entry.uses == 12


def test_a_refusal_is_not_asked_again_and_a_busy_one_is() -> None:
    """key_access is remembered; auth and key_busy are not."""
    for outcome, calls in ((KeyAccessError("no"), 1), (KeyBusyError("later"), 3), (AuthenticationError(), 3)):
        gate = Gate(outcome)
        gate.opened.set()
        with keys_of(gate) as keys:
            found = [keys.obtain([wish()])[0] for _ in range(3)]
        assert len(gate.calls) == calls
        assert {type(f) for f in found} == {type(outcome)}


def test_a_defect_in_unwrapping_reaches_nobody_but_as_internal() -> None:
    """An unexpected exception ends the flight for all its seats instead of leaving them to wait."""

    def broken(_: WrappedKey) -> bytearray:
        raise ZeroDivisionError

    with keys_of(broken) as keys:
        (outcome,) = keys.obtain([wish()])
    assert isinstance(outcome, MrgcError)
    assert outcome.code == "internal"


def test_a_tenants_keys_wait_in_its_own_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statement 9: while one tenant's calls hang, they hold its own lanes only: another tenant's key comes at once."""
    monkeypatch.setattr(data_keys, "KEY_WAIT_S", 0.3)
    gate = Gate()

    def unwrap(wrapped: WrappedKey) -> bytearray:
        return gate(wrapped) if wrapped.tenant == "acme" else bytearray(KEY)

    with keys_of(unwrap) as keys:
        outcomes = keys.obtain([*[wish(number) for number in range(40)], wish(0, "globex")])
        assert [o.code if isinstance(o, MrgcError) else "ok" for o in outcomes] == ["key_busy"] * 40 + ["ok"]
        assert len(gate.calls) == LANES
        gate.opened.set()
        until(lambda: keys.entries() == 41, within_s=10, what="the late keys to be cached")
        assert Counter(call.tenant for call in gate.calls) == {"acme": 40}


def test_calls_beyond_a_tenants_rate_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant that sends every job under its own key is slowed down; nobody else is."""
    # A slow machine would grant calls while this one is asking.
    monkeypatch.setattr(kms_budget, "CALLS_PER_S", 0.0)
    with keys_of(lambda _: bytearray(KEY)) as keys:
        wishes = [wish(number) for number in range(int(BURST_CALLS) + 50)]
        outcomes = keys.obtain([*wishes, wish(0, "globex")])
        busy = sum(isinstance(outcome, KeyBusyError) for outcome in outcomes)
        assert busy == 50
        assert isinstance(outcomes[-1], bytearray)


def test_closing_leaves_no_key_and_no_waiter() -> None:
    """After close nothing is fetched any more, and whoever asks is told to come back."""
    calls = KmsCalls(Counters())
    keys = DataKeys(lambda _: bytearray(KEY), calls, Counters())
    keys.obtain([wish()])
    calls.close()
    keys.close()
    (outcome,) = keys.obtain([wish()])
    assert isinstance(outcome, KeyBusyError)
    assert keys.entries() == 0


def test_counters_tell_hits_misses_and_calls() -> None:
    """Look-ups and calls are counted once each."""
    counters = Counters()
    calls = KmsCalls(counters)
    keys = DataKeys(lambda _: bytearray(KEY), calls, counters)
    keys.obtain([wish(0), wish(1)])
    keys.obtain([wish(0)])
    calls.close()
    keys.close()
    counted = counters.snapshot()
    assert (counted["key_cache_misses"], counted["key_cache_hits"]) == (2, 1)
    assert (counted["kms_calls"], counted["kms_failures"]) == (2, 0)
