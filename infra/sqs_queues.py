"""The queues of the one-machine SQS: what is in them, who sees it when. No I/O; the clock is passed in.

Standard queues as the Amazon SQS Developer Guide describes them: visibility timeouts, redrive after maxReceiveCount,
and fair queues, where message groups take turns. Unlike AWS's, a queue is in order within a group, forgets receive
counts when the server restarts, and keeps a message until it is deleted.

May import: the standard library. Called by infra.sqs_api.
"""

from __future__ import annotations

import heapq
import itertools
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

#: Amazon SQS API Reference, "ReceiveMessage": a message that is not deleted comes back after this long.
DEFAULT_VISIBILITY_S: Final = 30


@dataclass(slots=True, eq=False)
class Message:
    """One message, as sent."""

    id: str
    body: str = field(repr=False)
    #: MessageAttributes in the form of the API.
    attributes: dict[str, dict[str, str]]
    #: MessageGroupId; empty without one.
    group: str
    #: Unix milliseconds.
    sent_ms: int
    receives: int = 0
    #: ReceiptHandle of the last receive; empty before the first one since the server's start.
    handle: str = ""
    #: Monotonic second until which nobody else sees it; None while it is visible.
    hidden_until_s: float | None = None


@dataclass(frozen=True, slots=True)
class Redrive:
    """Where a message goes at the receive after its `after` ones."""

    queue: str
    after: int


class Queue:
    """One standard queue.

    Args:
        name: unique on the server.
        visibility_s: its VisibilityTimeout.
        redrive: its RedrivePolicy.
    """

    def __init__(
        self, name: str, *, visibility_s: float = DEFAULT_VISIBILITY_S, redrive: Redrive | None = None
    ) -> None:
        self.name = name
        self.visibility_s = visibility_s
        self.redrive = redrive
        self._messages: dict[str, Message] = {}
        #: Visible messages by group; the order of the groups is whose turn it is.
        self._visible: dict[str, dict[str, Message]] = {}
        #: (until, tie-breaker, message); an entry that the message's own field contradicts is void.
        self._hidden: list[tuple[float, int, Message]] = []
        self._ties = itertools.count()

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def visible(self) -> int:
        """Messages that a receive would find."""
        return sum(map(len, self._visible.values()))

    def add(self, message: Message) -> None:
        """Append a message."""
        self._messages[message.id] = message
        self._show(message)

    def receive(self, count: int, *, visibility_s: float, now_s: float) -> tuple[list[Message], list[Message]]:
        """Lease visible messages, the groups in turn.

        Args:
            count: at most this many.
            visibility_s: how long they stay hidden.
            now_s: monotonic seconds.

        Returns:
            Those leased, and those that left the queue because they had been received too often.
        """
        self._show_lapsed(now_s)
        taken: list[Message] = []
        spent: list[Message] = []
        while len(taken) < count and self._visible:
            message = self._next()
            if self.redrive is not None and message.receives >= self.redrive.after:
                del self._messages[message.id]
                spent.append(message)
                continue
            message.receives += 1
            message.handle = f"{message.id}.{secrets.token_hex(4)}"
            self._hide(message, now_s + visibility_s)
            taken.append(message)
        return taken, spent

    def delete(self, handle: str) -> Message | None:
        """Delete what `handle` was the last receive of; an older handle deletes nothing."""
        message = self._find(handle)
        if message is None or message.handle not in ("", handle):
            return None
        self._take_out(message)
        return self._messages.pop(message.id)

    def change_visibility(self, handle: str, *, visibility_s: float, now_s: float) -> bool:
        """Hide a leased message for another while, or show it at 0.

        Returns:
            False if the handle's lease has lapsed, was superseded, or its message is gone.
        """
        self._show_lapsed(now_s)
        message = self._find(handle)
        if message is None or message.handle not in ("", handle) or (message.handle and message.hidden_until_s is None):
            return False
        self._take_out(message)
        message.handle = handle
        if visibility_s > 0:
            self._hide(message, now_s + visibility_s)
        else:
            self._show(message)
        return True

    def next_lapse_s(self) -> float | None:
        """Return the monotonic second at which a hidden message may show again; None when none is hidden."""
        return self._hidden[0][0] if self._hidden else None

    def clear(self) -> list[Message]:
        """Take out every message."""
        gone = list(self._messages.values())
        self._messages.clear()
        self._visible.clear()
        self._hidden.clear()
        return gone

    def __iter__(self) -> Iterator[Message]:
        return iter(self._messages.values())

    def _next(self) -> Message:
        group, messages = next(iter(self._visible.items()))
        message = next(iter(messages.values()))
        self._take_out(message)
        if group in self._visible:
            # To the tail: the other groups come first.
            self._visible[group] = self._visible.pop(group)
        return message

    def _show(self, message: Message) -> None:
        message.hidden_until_s = None
        self._visible.setdefault(message.group, {})[message.id] = message

    def _hide(self, message: Message, until_s: float) -> None:
        message.hidden_until_s = until_s
        heapq.heappush(self._hidden, (until_s, next(self._ties), message))

    def _take_out(self, message: Message) -> None:
        group = self._visible.get(message.group, {})
        if group.pop(message.id, None) is not None and not group:
            del self._visible[message.group]

    def _show_lapsed(self, now_s: float) -> None:
        while self._hidden and self._hidden[0][0] <= now_s:
            until_s, _, message = heapq.heappop(self._hidden)
            if message.hidden_until_s == until_s and message.id in self._messages:
                self._show(message)

    def _find(self, handle: str) -> Message | None:
        return self._messages.get(handle.partition(".")[0])


def size_bytes(body: str, attributes: dict[str, Any]) -> int:
    """Return what a message counts against the limit of 1 MiB: body, and names, types and values of attributes."""
    return len(body.encode()) + sum(
        len(name.encode()) + sum(len(str(part).encode()) for part in value.values())
        for name, value in attributes.items()
    )
