"""Data keys for a batch: from the cache, or from KMS with one call per key however many threads want it.

KMS calls run on threads of their own. A batch waits for its keys a bounded time; a key that comes later than that
serves the next batch, and its jobs are answered `key_busy`.

Called by `enclave.operations`. May import: the standard library, enclave.key_cache, enclave.kms_budget, mrgc.errors.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from enclave.counters import Counters
from enclave.key_cache import KeyCache, Refused, WrappedKey, wipe
from enclave.kms_budget import KmsBudget
from mrgc.errors import InternalError, KeyAccessError, KeyBusyError, MrgcError

KEY_WAIT_S: Final = 10.0  #: Longest that a batch waits for its keys: the bound on what one tenant's keys cost others.
KMS_THREADS: Final = 16  #: Calls in flight, of all tenants; also the most connections to one region.

#: Unwraps one key; raises the MrgcError that its jobs are answered with.
Unwrap = Callable[[WrappedKey], bytearray]
DataKey = bytearray | MrgcError


class KeyWish(NamedTuple):
    """A key, and how many jobs of the batch use it."""

    wrapped: WrappedKey
    uses: int


class _Seat(NamedTuple):
    """One batch's place in a flight."""

    uses: int
    key: Future[DataKey]


@dataclass(slots=True)
class _Flight:
    """One KMS call and everyone who waits for it."""

    wrapped: WrappedKey
    identity: bytes
    seats: list[_Seat] = field(default_factory=list)


class DataKeys:
    """Cache, single flight and budget around an `Unwrap`.

    Args:
        unwrap: asks KMS; called on threads of this object.
        counters: gets kms_calls, kms_failures, kms_ms_total, key_cache_hits and key_cache_misses.
    """

    def __init__(self, unwrap: Unwrap, counters: Counters) -> None:
        self._unwrap = unwrap
        self._counters = counters
        self._lock = threading.Lock()
        self._cache = KeyCache()
        self._budget: KmsBudget[_Flight] = KmsBudget()
        self._flights: dict[bytes, _Flight] = {}
        self._is_closed = False
        self._threads = ThreadPoolExecutor(KMS_THREADS, thread_name_prefix="kms")

    def obtain(self, wishes: Sequence[KeyWish]) -> list[DataKey]:
        """Return a key, or the error of its jobs, for each wish in order.

        The keys are copies: whoever called zeroes them after use (`enclave.key_cache.wipe`).
        """
        give_up_s = time.monotonic() + KEY_WAIT_S
        found = [self._find(wish) for wish in wishes]
        return [_wait(key, give_up_s) if isinstance(key, Future) else key for key in found]

    def entries(self) -> int:
        """Return how many keys and refusals are held."""
        with self._lock:
            return len(self._cache)

    def sweep(self) -> None:
        """Zero the keys that are too old."""
        with self._lock:
            self._cache.sweep(time.monotonic())

    def close(self) -> None:
        """Let the calls in flight end, and zero every key."""
        with self._lock:
            self._is_closed = True
        self._threads.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            self._cache.clear()

    def _find(self, wish: KeyWish) -> DataKey | Future[DataKey]:
        wrapped, identity = wish.wrapped, wish.wrapped.identity()
        now_s = time.monotonic()
        with self._lock:
            cached = self._cache.take(wrapped.tenant, identity, uses=wish.uses, now_s=now_s)
            self._counters.add(**{"key_cache_misses" if cached is None else "key_cache_hits": 1})
            if isinstance(cached, Refused):
                return KeyAccessError("kms refused this key a moment ago")
            if cached is not None:
                return cached
            flight = self._flights.get(identity)
            if flight is None:
                if self._is_closed or not self._budget.admit(wrapped.tenant, now_s):
                    return KeyBusyError("tenant is over its rate of kms calls")
                flight = self._flights[identity] = _Flight(wrapped, identity)
                if self._budget.begin(wrapped.tenant, flight):
                    self._threads.submit(self._fly, flight)
            seat = _Seat(wish.uses, Future())
            flight.seats.append(seat)
            return seat.key

    def _fly(self, flight: _Flight) -> None:
        asked_s = time.monotonic()
        outcome: DataKey = InternalError("kms call failed without an answer")
        try:
            outcome = self._unwrap(flight.wrapped)
        except MrgcError as error:
            outcome = error
        finally:
            elapsed_ms = round((time.monotonic() - asked_s) * 1_000)
            failures = int(isinstance(outcome, MrgcError))
            self._counters.add(kms_calls=1, kms_failures=failures, kms_ms_total=elapsed_ms)
            self._land(flight, outcome, asked_s)

    def _land(self, flight: _Flight, outcome: DataKey, asked_s: float) -> None:
        tenant = flight.wrapped.tenant
        with self._lock:
            del self._flights[flight.identity]
            uses = sum(_seat_taken(seat, outcome) for seat in flight.seats)
            # Aged from before the question: never younger than KMS's answer.
            if isinstance(outcome, bytearray):
                self._cache.put(tenant, flight.identity, outcome, uses=uses, answered_s=asked_s)
                wipe(outcome)
            elif type(outcome) is KeyAccessError:
                self._cache.refuse(tenant, flight.identity, answered_s=asked_s)
            following = self._budget.end(tenant)
            if following is not None and not self._is_closed:
                self._threads.submit(self._fly, following)


def _seat_taken(seat: _Seat, outcome: DataKey) -> int:
    # False for a batch that gave up waiting: it must not be handed a key that nobody will zero.
    if not seat.key.set_running_or_notify_cancel():
        return 0
    seat.key.set_result(bytearray(outcome) if isinstance(outcome, bytearray) else outcome)
    return seat.uses


def _wait(key: Future[DataKey], give_up_s: float) -> DataKey:
    try:
        return key.result(max(0.0, give_up_s - time.monotonic()))
    except TimeoutError:
        if key.cancel():
            return KeyBusyError("kms has not answered in time")
        return key.result()
