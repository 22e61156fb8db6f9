"""Calls to KMS, made on threads of their own and within each tenant's budget (docs/spec.md §7).

Every call to KMS goes through here, so that no caller, whatever it sends, takes the fleet's quota or threads from
others.

Called by `enclave.data_keys` and `enclave.bare_payloads`. May import: the standard library, enclave, mrgc.errors.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

from enclave.counters import Counters
from enclave.kms_budget import KmsBudget
from mrgc.errors import InternalError, KeyBusyError, MrgcError

KMS_THREADS: Final = 16  #: Calls in flight, of all tenants; also the most connections to one region.

KEY_WAIT_S: Final = 10.0  #: Longest that anybody waits: the bound on what one tenant's keys cost others.

T = TypeVar("T")


class KmsCalls:
    """Threads, rate and lanes of the calls to KMS.

    Args:
        counters: gets kms_calls, kms_failures and kms_ms_total.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._lock = threading.Lock()
        self._budget: KmsBudget[Callable[[], None]] = KmsBudget()
        self._is_closed = False
        self._threads = ThreadPoolExecutor(KMS_THREADS, thread_name_prefix="kms")

    def submit(self, tenant: str, call: Callable[[], T], then: Callable[[T | MrgcError], None]) -> None:
        """Make a call soon: at once if the tenant has a free lane, else after its calls before this one.

        Args:
            tenant: whose budget it is.
            call: asks KMS; raises the MrgcError that is its outcome.
            then: takes the outcome, on a thread of this object.

        Raises:
            KeyBusyError: the tenant is over its rate, or the enclave stops; neither will be called.
        """
        task = partial(self._run, tenant, call, then)
        with self._lock:
            if self._is_closed or not self._budget.admit(tenant, time.monotonic()):
                raise KeyBusyError("tenant is over its rate of kms calls")
            if self._budget.begin(tenant, task):
                self._threads.submit(task)

    def ask(self, tenant: str, call: Callable[[], T], *, discard: Callable[[T], None]) -> T:
        """Make a call and wait for its outcome, KEY_WAIT_S at most.

        Args:
            tenant: whose budget it is.
            call: asks KMS.
            discard: zeroes an outcome that came too late for anybody to have it.

        Raises:
            KeyBusyError: no outcome in time, the tenant is over its rate, or the enclave stops.
            MrgcError: what `call` raised.
        """
        answer: Future[T] = Future()

        def deliver(outcome: T | MrgcError) -> None:
            if answer.set_running_or_notify_cancel():
                if isinstance(outcome, MrgcError):
                    answer.set_exception(outcome)
                else:
                    answer.set_result(outcome)
            elif not isinstance(outcome, MrgcError):
                discard(outcome)

        self.submit(tenant, call, deliver)
        try:
            return answer.result(KEY_WAIT_S)
        except TimeoutError:
            if answer.cancel():
                raise KeyBusyError("kms has not answered in time") from None
            return answer.result()

    def close(self) -> None:
        """Let the calls in flight end, and make no others."""
        with self._lock:
            self._is_closed = True
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _run(self, tenant: str, call: Callable[[], T], then: Callable[[T | MrgcError], None]) -> None:
        asked_s = time.monotonic()
        outcome: T | MrgcError = InternalError("kms call failed without an answer")
        try:
            outcome = call()
        except MrgcError as error:
            outcome = error
        finally:
            elapsed_ms = round((time.monotonic() - asked_s) * 1_000)
            failures = int(isinstance(outcome, MrgcError))
            self._counters.add(kms_calls=1, kms_failures=failures, kms_ms_total=elapsed_ms)
            then(outcome)
            self._end(tenant)

    def _end(self, tenant: str) -> None:
        with self._lock:
            following = self._budget.end(tenant)
            if following is not None and not self._is_closed:
                self._threads.submit(following)
