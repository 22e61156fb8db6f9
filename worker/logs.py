"""JSON log lines on standard error, with an allow-list of field names.

A line holds what an operator needs and what is public by design (docs/threat-model.md, statement 12). A field that is
not on the list is dropped, so a payload, a key or a token cannot reach a log through a forgotten argument. Texts of
exceptions are dropped too: a library may have put its input into them. What is left of an exception is its class,
its `code`, and the lines of code that it came through.

May import: the standard library, structlog, mrgc.errors. Called by every host process once, at start.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any, Final

import structlog

from mrgc.errors import MrgcError

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from types import TracebackType

#: The fields that a line may carry beside timestamp, level, process and event.
FIELDS: Final = frozenset(
    {
        "action", "address", "attempts", "batches", "boot", "bytes", "code", "consumer", "count", "device", "digest",
        "dimensions", "dtype", "enclave", "engine", "error", "exit_code", "inflight", "items", "job", "jobs", "lag",
        "left", "logger", "max_tokens", "message_id", "model", "models", "ms", "name", "path", "pcr0", "pid", "pending",
        "port", "ready", "reason", "reasons", "request", "retry_s", "s", "signal", "status", "tenant", "tenants",
        "thread", "tier", "tokens", "version", "where",
    }
)  # fmt: skip
#: Longest text value; a longer one is cut.
MAX_TEXT_CHARS: Final = 256
#: Frames of a stack that are shown, the innermost last.
MAX_FRAMES: Final = 12
#: Libraries whose message templates (never the arguments) are shown; others appear with their name only, because a
#: template may be a text that was formatted before it reached logging.
_TEMPLATES: Final = ("celery", "kombu")


def configure(process: str) -> None:
    """Send this process's logs, and what libraries log, to standard error as JSON lines.

    Args:
        process: its name in every line: worker, engine, agent, ….
    """

    def name_process(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        line["process"] = process
        return line

    structlog.configure(
        processors=[
            _describe_exception,
            _keep_allowed,
            name_process,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            structlog.processors.JSONRenderer(sort_keys=True),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.root.handlers = [_ForeignHandler()]
    logging.root.setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(
        args.exc_type, args.exc_value, args.exc_traceback, thread=getattr(args.thread, "name", "?")
    )


def describe(error: BaseException) -> dict[str, str]:
    """Return what a log line may say of an exception: `error`, `code` and `where`, never its text."""
    frames = traceback.extract_tb(error.__traceback__)[-MAX_FRAMES:]
    where = " > ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames)
    described = {"error": type(error).__name__, "where": where}
    if isinstance(error, MrgcError):
        described["code"] = error.code
    return described


def _describe_exception(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    error = line.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        line.update(describe(error))
    return line


def _keep_allowed(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    kept: dict[str, Any] = {"event": str(line.get("event", ""))[:MAX_TEXT_CHARS]}
    for name in FIELDS & line.keys():
        value = line[name]
        if isinstance(value, str):
            kept[name] = value[:MAX_TEXT_CHARS]
        elif value is None or isinstance(value, bool | int | float):
            kept[name] = value
        elif isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            kept[name] = [item[:MAX_TEXT_CHARS] for item in value[:MAX_FRAMES]]
    return kept


class _ForeignHandler(logging.Handler):
    """Passes on the records of libraries without their arguments, which may hold anything."""

    def emit(self, record: logging.LogRecord) -> None:
        named = record.name.partition(".")[0] in _TEMPLATES and isinstance(record.msg, str)
        event = record.msg if named else "library message"
        error = record.exc_info[1] if record.exc_info else None
        structlog.get_logger().log(
            # structlog knows the five standard levels only.
            min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL),
            event,
            logger=record.name,
            **(describe(error) if error else {"where": f"{record.filename}:{record.lineno}"}),
        )


def _log_uncaught(
    _kind: type[BaseException], error: BaseException | None, _trace: TracebackType | None, *, thread: str = "main"
) -> None:
    structlog.get_logger().critical("uncaught exception", thread=thread, **(describe(error) if error else {}))
