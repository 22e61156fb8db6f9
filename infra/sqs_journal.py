"""What the one-machine SQS writes down before it confirms: queues and messages, in an SQLite file.

Receive counts and visibility timeouts are not kept: after a crash every message that was in flight is visible, which a
lease allows.

May import: the standard library, infra.sqs_queues. Called by infra.sqs_api.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from infra.sqs_queues import Message

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS queues (name TEXT PRIMARY KEY, attributes TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS messages (
    position INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, queue TEXT NOT NULL, body TEXT NOT NULL,
    attributes TEXT NOT NULL, "group" TEXT NOT NULL, sent_ms INTEGER NOT NULL
);
"""


class Journal:
    """The file of one server. Changes are kept by the next `commit`.

    Args:
        path: made if absent; None keeps everything in memory.

    Raises:
        sqlite3.Error: the file is no journal, or cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._db = sqlite3.connect(path if path is not None else ":memory:")
        # WAL with FULL: a commit is one append and one flush, and survives a power cut.
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(_SCHEMA)

    def queues(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Read every queue's name and attributes."""
        for name, attributes in self._db.execute("SELECT name, attributes FROM queues"):
            yield name, json.loads(attributes)

    def messages(self) -> Iterator[tuple[str, Message]]:
        """Read every message with its queue's name, oldest first."""
        rows = self._db.execute('SELECT queue, id, body, attributes, "group", sent_ms FROM messages ORDER BY position')
        for queue, message_id, body, attributes, group, sent_ms in rows:
            yield queue, Message(message_id, body, json.loads(attributes), group, sent_ms)

    def keep_queue(self, name: str, attributes: dict[str, str]) -> None:
        """Note a queue, or its changed attributes."""
        self._db.execute("INSERT OR REPLACE INTO queues VALUES (?, ?)", (name, json.dumps(attributes)))

    def forget_queue(self, name: str) -> None:
        """Note that a queue and its messages are gone."""
        self._db.execute("DELETE FROM queues WHERE name = ?", (name,))
        self._db.execute("DELETE FROM messages WHERE queue = ?", (name,))

    def keep(self, queue: str, message: Message) -> None:
        """Note a message."""
        row = (message.id, queue, message.body, json.dumps(message.attributes), message.group, message.sent_ms)
        self._db.execute(
            'INSERT INTO messages (id, queue, body, attributes, "group", sent_ms) VALUES (?, ?, ?, ?, ?, ?)', row
        )

    def move(self, queue: str, message: Message) -> None:
        """Note that a message is in another queue now."""
        self._db.execute("UPDATE messages SET queue = ? WHERE id = ?", (queue, message.id))

    def forget(self, messages: Iterable[Message]) -> None:
        """Note that messages are gone."""
        self._db.executemany("DELETE FROM messages WHERE id = ?", [(message.id,) for message in messages])

    def commit(self) -> None:
        """Keep what was noted: once this returns it survives a crash."""
        self._db.commit()

    @property
    def is_dirty(self) -> bool:
        """Whether anything was noted since the last commit."""
        return self._db.in_transaction

    def close(self) -> None:
        """Commit and close."""
        self._db.commit()
        self._db.close()
