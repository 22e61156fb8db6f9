"""Data keys for a batch: from the cache, or from KMS with one call per key however many threads want it.

A batch waits for its keys a bounded time; a key that comes later than that serves the next batch, and its jobs are
answered `key_busy`.

Called by `enclave.batches`. May import: the standard library, enclave, mrgc.errors.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from enclave.counters import Counters
from enclave.key_cache import KeyCache, Refused, WrappedKey, wipe
from enclave.kms_calls import KEY_WAIT_S, KmsCalls
from mrgc.errors import KeyAccessError, KeyBusyError, MrgcError

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
    #: Monotonic time just before KMS was asked.
    asked_s: float = 0.0


class DataKeys:
    """Cache and single flight around an `Unwrap`.

    Args:
        unwrap: asks KMS; called on threads of `calls`.
        calls: makes the calls, within each tenant's budget.
        counters: gets key_cache_hits and key_cache_misses.
    """

    def __init__(self, unwrap: Unwrap, calls: KmsCalls, counters: Counters) -> None:
        self._unwrap = unwrap
        self._calls = calls
        self._counters = counters
        self._lock = threading.Lock()
        self._cache = KeyCache()
        self._flights: dict[bytes, _Flight] = {}

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
        """Zero every key; the calls must have ended."""
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
                flight = _Flight(wrapped, identity)
                try:
                    self._calls.submit(wrapped.tenant, partial(self._ask, flight), partial(self._land, flight))
                except KeyBusyError as error:
                    return error
                self._flights[identity] = flight
            seat = _Seat(wish.uses, Future())
            flight.seats.append(seat)
            return seat.key

    def _ask(self, flight: _Flight) -> bytearray:
        flight.asked_s = time.monotonic()
        return self._unwrap(flight.wrapped)

    def _land(self, flight: _Flight, outcome: DataKey) -> None:
        tenant = flight.wrapped.tenant
        with self._lock:
            del self._flights[flight.identity]
            uses = sum(_seat_taken(seat, outcome) for seat in flight.seats)
            # Aged from before the question: never younger than KMS's answer.
            if isinstance(outcome, bytearray):
                self._cache.put(tenant, flight.identity, outcome, uses=uses, answered_s=flight.asked_s)
                wipe(outcome)
            elif type(outcome) is KeyAccessError:
                self._cache.refuse(tenant, flight.identity, answered_s=flight.asked_s)


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
