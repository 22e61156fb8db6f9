from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from enclave import key_cache
from enclave.key_cache import MAX_AGE_S, MAX_PER_TENANT, MAX_USES, REFUSAL_AGE_S, REFUSED, KeyCache, WrappedKey, wipe
from mrgc.wire import strict_cbor

KEY = bytearray(range(32))


def identity(number: int) -> bytes:
    """Return one of many identities."""
    return number.to_bytes(32, "big")


def test_the_identity_is_the_hash_of_arn_context_and_wrapped_key() -> None:
    """docs/spec.md §7: SHA-256(CBOR [key_arn, context, edk]); the tenant counts through its context."""
    context = {"mrgc:use": "job", "mrgc:tenant": "acme"}
    wrapped = WrappedKey("acme", "arn", b"edk", tuple(context.items()))
    assert wrapped.identity() == hashlib.sha256(strict_cbor.encode(["arn", context, b"edk"])).digest()


def test_use_does_not_extend_a_keys_life() -> None:
    """Statement 9: a key dies 300 s after KMS's answer, however often it is used."""
    cache = KeyCache()
    cache.put("acme", identity(1), KEY, uses=1, answered_s=100.0)
    for now_s in (100.0, 250.0, 399.9):
        assert cache.take("acme", identity(1), uses=1, now_s=now_s) == KEY
    assert cache.take("acme", identity(1), uses=1, now_s=100.0 + MAX_AGE_S) is None
    assert len(cache) == 0


def test_a_key_dies_of_its_uses() -> None:
    """2^21 uses, counted from those that were handed out with KMS's answer."""
    cache = KeyCache()
    cache.put("acme", identity(1), KEY, uses=2, answered_s=0.0)
    assert cache.take("acme", identity(1), uses=MAX_USES - 2, now_s=1.0) == KEY
    assert cache.take("acme", identity(1), uses=1, now_s=1.0) is None


def test_a_refusal_is_remembered_for_30_seconds() -> None:
    """While it is remembered no KMS call is due; then KMS is asked again."""
    cache = KeyCache()
    cache.refuse("acme", identity(1), answered_s=0.0)
    assert cache.take("acme", identity(1), uses=1, now_s=REFUSAL_AGE_S - 0.1) is REFUSED
    assert cache.take("acme", identity(1), uses=1, now_s=REFUSAL_AGE_S) is None


def test_what_is_taken_is_a_copy() -> None:
    """Zeroing a borrowed key leaves the cached one whole, and an eviction leaves the borrowed one whole."""
    cache = KeyCache()
    cache.put("acme", identity(1), KEY, uses=0, answered_s=0.0)
    first = cache.take("acme", identity(1), uses=1, now_s=1.0)
    second = cache.take("acme", identity(1), uses=1, now_s=1.0)
    assert isinstance(first, bytearray)
    wipe(first)
    cache.clear()
    assert first == bytes(32)
    assert second == KEY


@pytest.mark.parametrize("way", ["sweep", "take", "clear", "quota", "replace"])
def test_a_key_that_leaves_is_zeroed(way: str) -> None:
    """Whichever way a key leaves the cache, its buffer is overwritten."""
    cache = KeyCache()
    cache.put("acme", identity(0), KEY, uses=0, answered_s=0.0)
    held = cache._tenants["acme"][identity(0)].key
    assert held == KEY
    if way == "sweep":
        cache.sweep(MAX_AGE_S)
    elif way == "take":
        cache.take("acme", identity(0), uses=1, now_s=MAX_AGE_S)
    elif way == "clear":
        cache.clear()
    elif way == "replace":
        cache.put("acme", identity(0), KEY, uses=0, answered_s=1.0)
    else:
        for number in range(1, MAX_PER_TENANT + 1):
            cache.put("acme", identity(number), KEY, uses=0, answered_s=0.0)
    assert held == bytes(32)


def test_a_tenant_over_its_quota_loses_its_own_least_used_key() -> None:
    """Statement 9: the quota evicts the tenant's own least recently used entry, and nobody else's."""
    cache = KeyCache()
    cache.put("globex", identity(999), KEY, uses=0, answered_s=0.0)
    for number in range(MAX_PER_TENANT):
        cache.put("acme", identity(number), KEY, uses=0, answered_s=0.0)
    assert cache.take("acme", identity(0), uses=1, now_s=1.0) == KEY
    cache.put("acme", identity(MAX_PER_TENANT), KEY, uses=0, answered_s=1.0)
    assert cache.take("acme", identity(1), uses=1, now_s=1.0) is None
    assert cache.take("acme", identity(0), uses=1, now_s=1.0) == KEY
    assert cache.take("globex", identity(999), uses=1, now_s=1.0) == KEY


def test_a_full_cache_turns_the_newcomer_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statement 9: one tenant cannot evict another's key, even when the whole cache is full."""
    monkeypatch.setattr(key_cache, "MAX_ENTRIES", 3)
    cache = KeyCache()
    for tenant in ("a", "b", "c", "d"):
        cache.put(tenant, identity(1), KEY, uses=0, answered_s=0.0)
    found = [cache.take(tenant, identity(1), uses=1, now_s=1.0) for tenant in ("a", "b", "c", "d")]
    assert found == [KEY, KEY, KEY, None]


@given(st.integers(0, MAX_USES * 2))
def test_uses_never_exceed_their_limit(handed_out: int) -> None:
    """A key that was handed out more often than its limit in one flight is not kept at all."""
    cache = KeyCache()
    cache.put("acme", identity(1), KEY, uses=handed_out, answered_s=0.0)
    assert len(cache) == (1 if handed_out <= MAX_USES else 0)


class CacheLife(RuleBasedStateMachine):
    """Random traffic of three tenants, with small limits."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(key_cache, "MAX_ENTRIES", 6)
        self.patch.setattr(key_cache, "MAX_PER_TENANT", 3)
        self.cache = KeyCache()
        self.now_s = 0.0
        self.answered: dict[tuple[str, bytes], float] = {}

    def teardown(self) -> None:
        self.patch.undo()

    tenants = st.sampled_from(["a", "b", "c"])
    numbers = st.integers(0, 5)

    @rule(tenant=tenants, number=numbers)
    def put(self, tenant: str, number: int) -> None:
        self.cache.put(tenant, identity(number), KEY, uses=0, answered_s=self.now_s)
        self.answered[tenant, identity(number)] = self.now_s

    @rule(tenant=tenants, number=numbers)
    def refuse(self, tenant: str, number: int) -> None:
        self.cache.refuse(tenant, identity(number), answered_s=self.now_s)

    @rule(tenant=tenants, number=numbers)
    def take(self, tenant: str, number: int) -> None:
        found = self.cache.take(tenant, identity(number), uses=1, now_s=self.now_s)
        if isinstance(found, bytearray):
            assert found == KEY
            assert self.now_s - self.answered[tenant, identity(number)] < MAX_AGE_S

    @rule(seconds=st.floats(0, 400))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def sweep(self) -> None:
        self.cache.sweep(self.now_s)
        assert all(e.until_s > self.now_s for shelf in self.cache._tenants.values() for e in shelf.values())

    @invariant()
    def bounded(self) -> None:
        shelves = self.cache._tenants
        assert len(self.cache) == sum(map(len, shelves.values())) <= 6
        assert all(1 <= len(shelf) <= 3 for shelf in shelves.values())


TestCacheLife = CacheLife.TestCase
