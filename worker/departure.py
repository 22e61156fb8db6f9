"""Watches for the end of the instance: spot interruption, termination by an Auto Scaling group, rebalancing.

None of these is guaranteed to be announced; what is not comes back by its lease (docs/adr/). A metadata service that
does not answer is asked again and changes nothing.

May import: the standard library, structlog, worker. Called by tasks.intake_step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

import structlog

from worker.departure_policy import REBALANCE_PATH, SPOT_PATH, STATE_PATH, Cause, cause_of
from worker.instance_metadata import InstanceMetadata, MetadataError
from worker.lifecycle_hook import LifecycleHook
from worker.settings import DepartureSettings

#: AWS recommends to look for a spot notice every 5 s; it comes two minutes ahead.
LOOK_S: Final = 5.0

_log = structlog.get_logger()


class Departure:
    """What this instance's metadata says about its end, and the answer to the hook that waits for it.

    Args:
        settings: where to look, and which hook to answer.
    """

    def __init__(self, settings: DepartureSettings) -> None:
        self._settings = settings
        self._metadata = InstanceMetadata(settings.imds)
        self._hook: LifecycleHook | None = None
        self._is_silent = False

    def look(self) -> bool:
        """Return whether the instance is going away; takes seconds at most, and never raises."""
        try:
            cause = cause_of(
                state=self._metadata.get(STATE_PATH),
                spot=self._metadata.get(SPOT_PATH),
                rebalance=self._metadata.get(REBALANCE_PATH) if self._settings.on_rebalance else None,
            )
            if cause is Cause.LIFECYCLE:
                self._hook = self._waiting_hook()
        except MetadataError as error:
            if not self._is_silent:
                _log.warning("instance metadata is silent", exc_info=error)
            self._is_silent = True
            return False
        self._is_silent = False
        if cause is not None:
            _log.warning("instance is going away", reason=cause.value)
        return cause is not None

    def watch(self, leave: Callable[[], None], stop: threading.Event) -> None:
        """Look again and again, until `stop` is set or `leave` has been called, once."""
        while not stop.wait(LOOK_S):
            if self.look():
                leave()
                return

    def drained(self) -> None:
        """Answer the hook, if one waits; called when nothing is held any more."""
        hook, self._hook = self._hook, None
        if hook is not None:
            hook.complete()

    def _waiting_hook(self) -> LifecycleHook | None:
        if not self._settings.hook:
            return None
        # Read before the drain, so that after it one call is left.
        instance, region = self._metadata.get("instance-id"), self._metadata.get("placement/region")
        if not instance or not region:
            raise MetadataError("metadata service does not name instance and region")
        return LifecycleHook(self._settings.group, self._settings.hook, instance, region)
