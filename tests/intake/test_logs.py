"""What a log line may say, and what it never says."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from mrgc.errors import KeyAccessError
from worker import logs

CANARY = "canary plaintext 7f3a"

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """Configure this process's logs for one test, and read what it logged."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    root = logging.getLogger()
    before = root.handlers[:], root.level, sys.excepthook, threading.excepthook
    logs.configure("worker")
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    root.handlers[:], root.level, sys.excepthook, threading.excepthook = before


def test_only_allowed_fields_and_plain_values_are_kept(lines: Lines) -> None:
    """A forgotten payload is dropped by its name, and a bytes or dict value by its type."""
    structlog.get_logger().info(
        "served", tenant="acme", jobs=3, plaintext=CANARY, job=CANARY.encode(), status={"x": CANARY}, models=["m"]
    )
    (line,) = lines()
    del line["ts"]
    assert line == {
        "event": "served",
        "level": "info",
        "process": "worker",
        "tenant": "acme",
        "jobs": 3,
        "models": ["m"],
    }


def test_long_values_are_cut(lines: Lines) -> None:
    """No line grows with its input."""
    structlog.get_logger().info("x" * 10_000, reason="y" * 10_000, models=["z" * 10_000] * 10_000)
    (line,) = lines()
    assert len(json.dumps(line)) < 10_000


def test_exceptions_show_class_code_and_place_but_no_text(lines: Lines) -> None:
    """What an exception says may quote what it was given."""
    try:
        raise KeyAccessError(CANARY)
    except KeyAccessError:
        structlog.get_logger().exception("failed")
    (line,) = lines()
    assert (line["error"], line["code"]) == ("KeyAccessError", "key_access")
    assert "test_logs.py:" in line["where"]
    assert CANARY not in json.dumps(line)


def test_libraries_are_logged_without_their_arguments(lines: Lines) -> None:
    """A library's record keeps its template if we know the library, and never its arguments or its exception's text."""
    logging.getLogger("celery.worker").warning("lost %s", CANARY)
    logging.getLogger("elsewhere").error(f"lost {CANARY}")  # noqa: G004  what some libraries do
    try:
        raise ValueError(CANARY)
    except ValueError:
        logging.getLogger("elsewhere").exception("failed")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(CANARY, stacklevel=1)
    found = lines()
    assert [line["event"] for line in found] == ["lost %s", *["library message"] * 3]
    assert CANARY not in json.dumps(found)


def test_uncaught_exceptions_are_logged_without_their_text(lines: Lines) -> None:
    """Python's own traceback of a dying thread would print the exception's text."""

    def fail() -> None:
        raise RuntimeError(CANARY)

    thread = threading.Thread(target=fail, name="doomed")
    thread.start()
    thread.join()
    (line,) = lines()
    assert (line["event"], line["thread"], line["error"]) == ("uncaught exception", "doomed", "RuntimeError")
    assert CANARY not in json.dumps(line)
